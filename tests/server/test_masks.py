"""Unmasked frames are detected for every split of their bytes."""

from __future__ import annotations

import pytest

from easq.server.masks import Masks
from tests.support.websocket import PING, encode


@pytest.mark.parametrize("size", [0, 1, 125, 126, 70_000])
@pytest.mark.parametrize("pieces", [1, 3, 1 << 20])
def test_masks_are_found_however_the_bytes_come(size: int, pieces: int) -> None:
    good = encode(PING, b"\0" * size) * 3
    masks = Masks()
    assert all(masks.are_valid(good[at : at + pieces]) for at in range(0, len(good), pieces))
    bad = encode(PING, b"x", masked=False)
    assert not all(masks.are_valid(bad[at : at + 1]) for at in range(2))

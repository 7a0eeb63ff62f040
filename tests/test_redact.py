"""Secrets are shown in part at most."""

from easq.redact import mask


def test_a_mask_shows_four_characters_of_a_long_secret_and_nothing_of_a_short_one() -> None:
    assert mask("YmE3NDkyMzdiMzNmMGM3ZmE4ZmNj==") == "****Nj=="
    assert mask("hunter2") == "****"

"""The list of instances on disk: whole, private, and never trusted more than an answer."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from easq.model import Instance
from easq.prediction.cache import CachedList, list_file, read_list, write_list
from easq.protocol.discovery import Upstreams, read_upstreams, write_upstreams

INSTANCES = (Instance("10.0.0.1", 50000, 100), Instance("2001:db8::1", 50001, 0))


def answer(instances: Sequence[Instance] = INSTANCES) -> bytes:
    return write_upstreams("svc", instances)


def read(body: bytes) -> Upstreams:
    return read_upstreams(body, loopback=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return list_file(tmp_path / "deep" / "easq", "http://e", "svc")


def test_what_was_written_is_read(file: Path) -> None:
    write_list(file, answer(), 1234.5)
    assert read_list(file, read) == CachedList(INSTANCES, 1234.5)
    write_list(file, answer(INSTANCES[:1]), 1235)
    assert read_list(file, read) == CachedList(INSTANCES[:1], 1235.0)
    assert list(file.parent.iterdir()) == [file]


def test_nobody_else_may_read_it_whatever_the_umask(file: Path) -> None:
    old = os.umask(0)
    try:
        write_list(file, answer(), 0)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_each_endpoint_and_service_has_its_own(tmp_path: Path) -> None:
    files = {
        list_file(tmp_path, "http://a", "x"),
        list_file(tmp_path, "http://a", "y"),
        list_file(tmp_path, "http://b", "x"),
        list_file(tmp_path, "http://a", "../../x"),
    }
    assert len(files) == 4
    assert {file.parent for file in files} == {tmp_path}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"time":0}',
        b'{"time":0,"answer":null}',
        b'{"time":"x","answer":{"endpoints":{"items":[{"ip":"10.0.0.1","port":1}]}}}',
        b'{"time":0,"answer":{"endpoints":{"items":[]}}}',
        b'{"time":0,"answer":{"endpoints":{"items":[{"ip":"169.254.169.254","port":1}]}}}',
        b'{"time":0,"answer":{"endpoints":{"items":[{"ip":"127.0.0.1","port":1}]}}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_list_is_nothing(file: Path, content: bytes) -> None:
    write_list(file, answer(), 0)
    file.write_bytes(content)
    assert read_list(file, read) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_write_is_nothing(file: Path, mode: int) -> None:
    write_list(file, answer(), 0)
    file.chmod(mode)
    assert read_list(file, read) is None


def test_a_link_a_pipe_and_a_folder_are_nothing(file: Path, tmp_path: Path) -> None:
    write_list(file, answer(), 0)
    for name, make in (("link", lambda p: p.symlink_to(file)), ("pipe", os.mkfifo), ("folder", os.mkdir)):
        place: Any = tmp_path / name
        make(place)
        assert read_list(place, read) is None


def test_a_link_in_its_place_is_replaced_and_not_written_through(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    file.parent.mkdir(parents=True)
    file.symlink_to(other)
    write_list(file, answer(), 0)
    assert other.read_text() == "mine"
    assert json.loads(file.read_text())["answer"]["correlative"] == ["svc"]


def test_where_nothing_can_be_written_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "easq").write_text("a file")
    write_list(list_file(tmp_path / "easq", "http://e", "svc"), answer(), 0)
    assert read_list(list_file(tmp_path / "easq", "http://e", "svc"), read) is None

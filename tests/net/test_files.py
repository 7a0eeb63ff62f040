"""Files of a user: regular ones alone, behind links of ours alone, whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from easq.net import files
from tests.support.nodes import NODES, ZERO, look, make_device


@pytest.mark.parametrize("kind", NODES)
def test_only_regular_files_are_read_and_written(tmp_path: Path, kind: str) -> None:
    """It is refused without being opened, and is what it was afterwards."""
    place = tmp_path / "place"
    NODES[kind](place)
    link = tmp_path / "link"
    link.symlink_to(place)
    before = look(place)
    for path in (place, link):
        with pytest.raises(OSError, match=f"it is a {kind}"):
            files.replace(path, b"new")
        with pytest.raises(OSError, match=f"it is a {kind}"):
            files.open_regular(path, os.O_RDWR | os.O_CREAT)
        if kind != "device":
            with pytest.raises(OSError, match=f"it is a {kind}"):
                files.read_regular(path, 10)
    assert look(place) == before
    assert sorted(os.listdir(tmp_path)) == ["link", "place"]


def test_a_read_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert files.read_regular(file, 10)[0] == b"0123456789"
    with pytest.raises(OSError, match="larger than 9 bytes"):
        files.read_regular(file, 9)


def test_the_null_device_reads_as_an_empty_file_and_no_other_does(tmp_path: Path) -> None:
    assert files.read_regular(os.devnull, 10)[0] == b""
    make_device(tmp_path / "zero", ZERO)
    with pytest.raises(OSError, match="it is a device"):
        files.read_regular(tmp_path / "zero", 10)


@pytest.mark.parametrize("exists", [True, False])
def test_a_write_through_links_of_ours_ends_at_the_file_itself(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "dotfiles").mkdir()
    file = tmp_path / "dotfiles" / "config"
    if exists:
        file.write_bytes(b"old")
    (tmp_path / "second").symlink_to("dotfiles/config")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    files.replace(tmp_path / "first", b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (tmp_path / "first").is_symlink()
    assert os.listdir(file.parent) == ["config"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        files.replace(tmp_path / "a", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("theirs", ["link", "file"])
def test_neither_a_link_nor_a_linked_file_of_another_user_is_written(tmp_path: Path, theirs: str) -> None:
    """In /tmp anybody may plant a link to a file of ours, and ours may lead to a file that is not ours."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    link.symlink_to(file)
    os.lchown(link if theirs == "link" else file, 12345, 12345)
    with pytest.raises(OSError, match=r"it is a symbolic link .*that belongs to user 12345, not to you"):
        files.replace(link, b"new")
    assert file.read_bytes() == b"old"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_and_folders_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Also each folder above that had to be made."""
    folder = tmp_path / "a" / "b" / "c"
    old = os.umask(umask)
    try:
        files.make_private_folder(folder)
        files.replace(folder / "file", b"")
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (folder, folder.parent, folder.parent.parent)]
    assert modes == [0o700] * 3
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600


def test_a_file_is_private_from_its_creation_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made so, and need not become so."""
    made: list[int] = []
    monkeypatch.setattr(os, "fchmod", lambda fd, _: made.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    old = os.umask(0)
    try:
        files.replace(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert made == [0o600]


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o755)
    files.make_private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        files.make_private_folder(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("mode", "folder", "said"),
    [
        (0o600, False, False),
        (0o640, False, True),
        (0o604, False, True),
        (0o755, True, False),
        (0o775, True, True),
        (0o777, True, True),
        (0o1777, True, False),
    ],
)
def test_files_that_others_can_read_or_change_are_reported(
    tmp_path: Path, mode: int, folder: bool, said: bool
) -> None:
    path = tmp_path / "it"
    path.mkdir() if folder else path.touch()
    path.chmod(mode)
    fix = f"{path} is open to others (mode {mode:04o}): chmod {'700' if folder else '600'} {path}"
    assert files.exposure(path, path.stat()) == ((fix,) if said else ())


def test_a_link_is_replaced_where_none_is_wanted(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"mine")
    link.symlink_to(other)
    files.replace(link, b"new", follow=False)
    assert (other.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"mine", b"new", False)

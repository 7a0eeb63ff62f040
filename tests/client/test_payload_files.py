"""Payloads as files of a folder: nothing is overwritten, and no request id leads out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from easq.client.payload_files import PayloadFolder, file_name
from easq.errors import UsageError
from easq.model import REQUEST_ID, Frame


@pytest.mark.parametrize(
    ("request_id", "name"),
    [("r-1_A", "7-r-1_A"), ("", "7"), ("../x", "7"), ("a/b", "7"), ("-rf", "7"), ("a" * 129, "7")],
)
def test_a_file_is_named_by_index_and_request_id(request_id: str, name: str) -> None:
    assert file_name(Frame(7, {REQUEST_ID: request_id})) == name


def test_payloads_are_written_into_a_new_folder(tmp_path: Path) -> None:
    with PayloadFolder(str(tmp_path / "new")) as folder:
        path = folder.write(Frame(7, {REQUEST_ID: "r"}, b"\x00x"))
        with pytest.raises(UsageError, match="File exists"):
            folder.write(Frame(7, {REQUEST_ID: "r"}, b"other"))
    assert path == str(tmp_path / "new" / "7-r")
    assert Path(path).read_bytes() == b"\x00x"


def test_links_and_files_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "link/", "file", "no/parent"):
        with pytest.raises(UsageError):
            PayloadFolder(f"{tmp_path}/{name}")
    (tmp_path / "7").symlink_to(tmp_path / "elsewhere")
    with PayloadFolder(str(tmp_path)) as folder, pytest.raises(UsageError, match="File exists"):
        folder.write(Frame(7))
    assert not (tmp_path / "elsewhere").exists()

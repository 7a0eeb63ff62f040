"""easq get: read items without a consumer group."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, stream_options, tags_option
from easq.cli.param_types import DURATION, INDEX_OR_HEAD, WholeNumber

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.model import Frame

#: a request id that may stand in the name of a file
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


@command(
    "get",
    examples=(
        "easq get -l 10 --timeout 3s",
        "easq get -k --request-id ef6940e3-159c-45f3-a96d-bc0acd71275f -o raw > result.png",
        "easq get 3",
        "easq get -k -l 100 --output-dir results --delete",
    ),
)
@click.argument("index", type=INDEX_OR_HEAD, default="0", required=False)
@click.option("-l", "--length", type=WholeNumber(1), default=1, help="Maximum number of items.  [default: 1]")
@click.option(
    "--timeout",
    type=DURATION,
    help="Maximum wait for items and for the service, such as 3s.  [default: no wait]",
)
@tags_option("Only items with this tag; can be repeated.")
@click.option("--request-id", metavar="ID", help="Only the item of this request.")
@click.option("--delete", is_flag=True, help="Delete the printed items, for all groups.")
@click.option(
    "--output-dir",
    type=click.Path(readable=False),
    metavar="DIR",
    help="Write each payload to its own file in DIR.",
)
@click.option("--allow-empty", is_flag=True, help="Exit with 0 instead of 3 if there is no item.")
@stream_options
def get(
    app: App,
    index: int,
    length: int,
    timeout: float | None,
    tags: tuple[tuple[str, str], ...],
    request_id: str | None,
    delete: bool,
    output_dir: str | None,
    allow_empty: bool,
) -> None:
    """Read items without removing them from the queue.

    Reading starts at INDEX; 0 is the head of the queue. With --delete, the printed items are deleted.
    """
    from easq.errors import DeadlineExceeded, EasqError, NoData, Partial, UsageError
    from easq.model import REQUEST_ID
    from easq.net.retry import OVERTIME_S

    if delete and app.output == "none" and output_dir is None:
        raise UsageError(
            "--delete with -o none would delete items that were not shown",
            hint="--output-dir DIR keeps the payloads",
        )
    wanted = {**as_tags(tags), **({REQUEST_ID: request_id} if request_id else {})}
    client = app.queue()
    bounded = client.bounded(None if timeout is None else time.monotonic() + timeout + OVERTIME_S)
    shown = deleted = 0
    try:
        for frames in bounded.pages(index, length=length, timeout_s=timeout or 0.0, tags=wanted):
            if not shown and index and not wanted and frames[0].index != index:
                text = f"no item has the index {index}; the next one is {frames[0].index}"
                if delete and length == 1:
                    raise NoData(text, hint="nothing was deleted")
                if app.output != "json":
                    app.printer.warn(text)
            _print(app, frames, output_dir, first=shown, alone=length == 1)
            shown += len(frames)
            if delete:
                whole = [f.index for f in frames if output_dir is not None or app.printer.shows_whole(f.data)]
                if whole:
                    client.delete(whole)
                deleted += len(whole)
    except DeadlineExceeded as error:
        if not shown:
            raise
        app.printer.warn(f"{error.message}: {shown} of at most {length} are shown")
    except EasqError as error:
        if not deleted:
            raise
        raise Partial(f"{error.message}; deleted before that: {deleted}", hint=error.hint) from error
    if not shown:
        if not allow_empty:
            raise NoData(_nothing(index, wanted, timeout or 0.0))
        _print(app, [], output_dir, first=0, alone=False)
    if delete and deleted < shown:
        text = f"{shown - deleted} of {shown} items were not shown in full, and not deleted"
        raise (Partial if deleted else UsageError)(text, hint="use -o json or --output-dir DIR")


def _nothing(index: int, tags: dict[str, str], timeout_s: float) -> str:
    from easq.protocol.durations import format_duration
    from easq.protocol.replies import format_tags

    where = f" from index {index} on" if index else ""
    which = f" with {format_tags(tags)}" if tags else ""
    when = f" within {format_duration(timeout_s)}" if timeout_s else ""
    return f"no data{where}{which}{when}"


def _print(app: App, frames: list[Frame], output_dir: str | None, *, first: int, alone: bool) -> None:
    """Print the items, numbered from `first`, or write them to the folder `output_dir`."""
    if output_dir is not None:
        _store(app, frames, output_dir, first)
    else:
        _show(app, frames, first, alone=alone)


def _show(app: App, frames: list[Frame], first: int, *, alone: bool) -> None:
    from easq.render.rows import FRAME_COLUMNS, frame_row

    if app.output == "table" and (app.printer.out_is_terminal or not first):
        rows = [frame_row(number, frame) for number, frame in enumerate(frames, first)]
        app.printer.table(FRAME_COLUMNS, rows)
    else:
        for number, frame in enumerate(frames, first):
            app.printer.frame(number, frame, alone=alone)
        app.printer.flush()


def _store(app: App, frames: list[Frame], folder: str, first: int) -> None:
    """Write each payload to a new file in `folder`, synced to the disk, and print its name.

    Raises UsageError for a folder that is a link, and for a file that is there already.
    """
    from easq.errors import UsageError

    try:
        if not os.path.lexists(folder):
            os.mkdir(folder)
        target = os.open(
            folder.rstrip("/") or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except OSError as error:
        link = os.path.islink(folder.rstrip("/"))
        raise UsageError(f"{folder}: {'a symbolic link' if link else error.strerror}") from error
    if app.output == "table" and not first:
        from easq.render.rows import FRAME_COLUMNS

        app.printer.header(FRAME_COLUMNS)
    try:
        for number, frame in enumerate(frames, first):
            name = file_name(frame)
            _write_new(target, name, frame.data, folder)
            app.printer.frame(number, frame, file=os.path.join(folder, name))
        app.printer.flush()
        os.fsync(target)
    finally:
        os.close(target)


def file_name(frame: Frame) -> str:
    """Return INDEX-REQUESTID; INDEX alone if the request id has other characters than letters, digits, _ and -."""
    if _SAFE_ID.fullmatch(frame.request_id):
        return f"{frame.index}-{frame.request_id}"
    return str(frame.index)


def _write_new(folder: int, name: str, data: bytes, shown_folder: str) -> None:
    from easq.errors import StorageError, UsageError

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o666, dir_fd=folder)
    except OSError as error:
        raise UsageError(f"{os.path.join(shown_folder, name)}: {error.strerror}") from error
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        raise StorageError(f"{os.path.join(shown_folder, name)}: {error.strerror}") from error

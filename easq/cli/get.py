"""easq get: read items without a consumer group."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, stream_options, tags_option
from easq.cli.param_types import DURATION, INDEX_OR_HEAD, WholeNumber

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from easq.cli.app import App
    from easq.model import Frame


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
    from easq.errors import UsageError
    from easq.model import REQUEST_ID

    if delete and app.output == "none" and output_dir is None:
        raise UsageError(
            "--delete with -o none would delete items that were not shown",
            hint="--output-dir DIR keeps the payloads",
        )
    wanted = {**as_tags(tags), **({REQUEST_ID: request_id} if request_id else {})}
    run = GetRun(app, index, length, timeout, wanted, delete, output_dir)
    run.read()
    run.end(allow_empty=allow_empty)


@dataclass
class GetRun:
    """One run of `easq get`: prints the items page by page, and deletes them if that was asked for."""

    app: App
    index: int
    length: int
    timeout_s: float | None
    tags: Mapping[str, str]
    delete: bool
    output_dir: str | None
    shown: int = 0
    deleted: int = 0

    def read(self) -> None:
        """Print the items. Raises Partial if that fails after some were deleted."""
        from easq.errors import DeadlineExceeded, EasqError, Partial
        from easq.net.retry import OVERTIME_S

        client, timeout_s = self.app.queue(), self.timeout_s
        bounded = client.bounded(None if timeout_s is None else time.monotonic() + timeout_s + OVERTIME_S)
        try:
            for frames in bounded.pages(
                self.index, length=self.length, timeout_s=timeout_s or 0.0, tags=self.tags
            ):
                self._check_index(frames[0].index)
                self._print(frames)
                if not self.delete:
                    continue
                files, printer = self.output_dir is not None, self.app.printer
                whole = [frame.index for frame in frames if files or printer.shows_whole(frame.data)]
                if whole:
                    client.delete(whole)
                self.deleted += len(whole)
        except DeadlineExceeded as error:
            if not self.shown:
                raise
            self.app.printer.warn(f"{error.message}: {self.shown} of at most {self.length} are shown")
        except EasqError as error:
            if not self.deleted:
                raise
            text = f"{error.message}; deleted before that: {self.deleted}"
            raise Partial(text, hint=error.hint) from error

    def end(self, *, allow_empty: bool) -> None:
        """Raise NoData if there was no item, and an error if not all were deleted that were to be."""
        from easq.errors import NoData, Partial, UsageError
        from easq.protocol.durations import format_duration
        from easq.protocol.replies import format_tags

        if not self.shown:
            if not allow_empty:
                where = f" from index {self.index} on" if self.index else ""
                which = f" with {format_tags(self.tags)}" if self.tags else ""
                when = f" within {format_duration(self.timeout_s)}" if self.timeout_s else ""
                raise NoData(f"no data{where}{which}{when}")
            self._print([])
        if self.delete and self.deleted < self.shown:
            text = (
                f"{self.shown - self.deleted} of {self.shown} items were not shown in full, and not deleted"
            )
            kind = Partial if self.deleted else UsageError
            raise kind(text, hint="use -o json or --output-dir DIR")

    def _check_index(self, first: int) -> None:
        """Warn if the first item is not the one asked for. Raises NoData if it would be deleted."""
        from easq.errors import NoData

        if self.shown or not self.index or self.tags or first == self.index:
            return
        text = f"no item has the index {self.index}; the next one is {first}"
        if self.delete and self.length == 1:
            raise NoData(text, hint="nothing was deleted")
        if self.app.output != "json":
            self.app.printer.warn(text)

    def _print(self, frames: Sequence[Frame]) -> None:
        from easq.render.rows import FRAME_COLUMNS, frame_row

        printer, numbered = self.app.printer, list(enumerate(frames, self.shown))
        if self.output_dir is not None:
            self._write_files(self.output_dir, numbered)
        elif self.app.output == "table" and (printer.out_is_terminal or not self.shown):
            printer.table(FRAME_COLUMNS, [frame_row(number, frame) for number, frame in numbered])
        else:
            for number, frame in numbered:
                printer.frame(number, frame, alone=bool(frames) and self.length == 1)
            printer.flush()
        self.shown += len(frames)

    def _write_files(self, folder: str, numbered: Sequence[tuple[int, Frame]]) -> None:
        from easq.client.payload_files import PayloadFolder
        from easq.render.rows import FRAME_COLUMNS

        with PayloadFolder(folder) as files:
            if self.app.output == "table" and not self.shown:
                self.app.printer.header(FRAME_COLUMNS)
            for number, frame in numbered:
                self.app.printer.frame(number, frame, file=files.write(frame))
            self.app.printer.flush()

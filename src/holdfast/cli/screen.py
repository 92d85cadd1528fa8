"""What is printed: data on stdout, as lines for people or as JSON, and talk on stderr.

People at a terminal get colours if rich is installed (the extra `cli`); others get the same in plain text.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import WorkflowError

if TYPE_CHECKING:
    from rich.console import Console

Span = tuple[str, str]
"""A piece of a line, and its style in rich's words; an empty style is plain."""


class Screen:
    """One command's output."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._console = None if json else _console()

    def data(self, value: object) -> None:
        """One value: a line of JSON; of a string, for people, only what is in it."""
        if isinstance(value, str) and not self.json:
            self._write(value)
        else:
            self._write(to_json(value))

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """A table of `columns` (key: heading); as JSON a line per row, with all that is in it."""
        if self.json:
            for row in rows:
                self._write(to_json(row))
            return
        cells = [[_cell(row[key]) for key in columns] for row in rows]
        table = [[heading.upper() for heading in columns.values()], *cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for number, line in enumerate(table):
            style = "bold" if number == 0 else ""
            self.line(
                *(
                    (f"{cell:<{width}}  ", style or shade(cell))
                    for cell, width in zip(line, widths, strict=True)
                )
            )

    def line(self, *spans: Span) -> None:
        """A line for people."""
        if self._console is None:
            self._write("".join(text for text, _ in spans).rstrip())
            return
        from rich.text import Text

        text = Text.assemble(*spans)
        text.rstrip()
        self._console.print(text)

    def talk(self, text: str) -> None:
        """A remark, on stderr; none with --json."""
        if not self.json:
            sys.stderr.write(f"{text}\n")

    def note(self, text: str) -> None:
        """A remark that programs need too, on stderr."""
        sys.stderr.write(f"{text}\n")

    def complain(self, error: BaseException | str) -> None:
        """An error, on stderr; with its cause, if that is what happened in the workflow."""
        sys.stderr.write(f"holdfast: {error}\n")
        if isinstance(error, WorkflowError) and error.__cause__ is not None:
            sys.stderr.write(f"  {type(error.__cause__).__name__}: {error.__cause__}\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _console() -> "Console | None":
    """What prints colours; None if nobody would see them, or rich is not installed."""
    if not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR"):
        return None
    try:
        from rich.console import Console  # an extra, and slow to import
    except ImportError:
        return None
    return Console(highlight=False, soft_wrap=True)


def to_json(value: object) -> str:
    """A value on one line of JSON."""
    return msgspec.json.encode(value).decode()


def shade(cell: str) -> str:
    """The style of a status."""
    return _SHADES.get(cell, "")


_SHADES = {
    "SUCCESS": "green",
    "ERROR": "red",
    "QUARANTINED": "red",
    "CANCELLED": "yellow",
    "PENDING": "cyan",
    "ENQUEUED": "blue",
    "DELAYED": "blue",
}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return to_json(value)

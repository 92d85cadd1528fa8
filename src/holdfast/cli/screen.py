"""What is printed: data on stdout, as lines for people or as JSON, and talk on stderr.

People get colours and tables if rich is installed (the extra `cli`); without it, or with a pipe, the same in plain text.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

try:
    from rich.console import Console
    from rich.text import Text
except ImportError:  # pragma: no cover - the extra is not installed
    Console = Text = None  # type: ignore[assignment,misc]

Span = tuple[str, str]
"""A piece of a line, and its style in rich's words; an empty style is plain."""


class Screen:
    """One command's output."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._console = None if json or Console is None else Console(highlight=False, soft_wrap=True)

    def data(self, value: Any) -> None:
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
        text = Text()
        for part, style in spans:
            text.append(part, style)
        text.rstrip()
        self._console.print(text)

    def talk(self, text: str) -> None:
        """A remark, on stderr; none with --json."""
        if not self.json:
            sys.stderr.write(f"{text}\n")

    def complain(self, error: BaseException) -> None:
        """An error, on stderr; with its cause, if that is what happened in the workflow."""
        sys.stderr.write(f"holdfast: {error}\n")
        if error.__cause__ is not None and hasattr(error, "workflow_id"):
            sys.stderr.write(f"  {type(error.__cause__).__name__}: {error.__cause__}\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def to_json(value: Any) -> str:
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return to_json(value)

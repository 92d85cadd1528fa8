"""Finds the `.sql` files, cuts them into statements and writes another schema's name into them.

The files live in `sql/` at the top of a checkout and in `holdfast/_sql/files` of an installed wheel. They are
written for the schema `holdfast` and run in psql as they are. Nothing here talks to a database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.config import check_schema_name

HOME: Final = "holdfast"
"""The schema that the files are written for."""

_HERE: Final = Path(__file__).resolve().parent
_PLACES: Final = (_HERE / "files", _HERE.parents[2] / "sql")
_QUALIFIER: Final = re.compile(
    r"""(?<![\w$])holdfast(?=\.[\w"])  # holdfast.workflows
    | (?:(?<=schema\ )|(?<=schema\ if\ not\ exists\ ))holdfast(?![\w$])  # create schema holdfast
    """,
    re.VERBOSE,
)
_SECTION: Final = re.compile(r"^-- name: *(?P<name>[a-z][a-z0-9_]*) *$", re.MULTILINE)
_MIGRATION: Final = re.compile(r"(?P<number>[0-9]{4})_(?P<name>[a-z0-9_]+)\.sql")


class Migration(NamedTuple):
    """One numbered step of the schema; `sql` may hold many statements."""

    number: int
    name: str
    sql: str


class Statements(Mapping[str, str]):
    """The statements of one schema by their dotted names: `statements["workflows.claim"]` is its SQL.

    The text is one statement without comments before it and without the semicolon. `promise` gives the
    comment that stands directly below the statement's name.
    """

    __slots__ = ("_promises", "_texts")

    def __init__(self, sections: Mapping[str, tuple[str, str]]) -> None:
        self._promises = {name: promise for name, (promise, _) in sections.items()}
        self._texts = {name: text for name, (_, text) in sections.items()}

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise KeyError(f"no statement {name!r} in sql/queries") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        return f"<Statements: {len(self)}>"

    def promise(self, name: str) -> str:
        """What the statement promises, as one line; empty when its file does not say."""
        return self._promises[name]


def directory() -> Path:
    """The folder with `migrations`, `functions` and `queries`.

    Raises:
        FileNotFoundError: if the package was installed without them.
    """
    for place in _PLACES:
        if (place / "queries").is_dir():
            return place
    raise FileNotFoundError("holdfast is installed without its SQL files; install it again from a wheel")


@lru_cache(maxsize=64)
def load(schema: str = HOME, root: Path | None = None) -> Statements:
    """Every statement of `queries/`, written for `schema`.

    Raises:
        ConfigurationError: if `schema` is not a name that fits.
        ValueError: if a file cannot be cut; the message names file and section.
    """
    check_schema_name(schema)
    sections: dict[str, tuple[str, str]] = {}
    for path in _files("queries", root):
        for name, promise, text in _cut(path.name, path.read_text("utf-8")):
            key = f"{path.stem}.{name}"
            if key in sections:
                raise ValueError(f"{path.name}: two statements are named {name!r}")
            sections[key] = (promise, qualify(text, schema))
    return Statements(sections)


def functions(schema: str = HOME, root: Path | None = None) -> list[tuple[str, str]]:
    """Every file of `functions/` as (file name, SQL), in the order in which they are to be run."""
    check_schema_name(schema)
    return [(path.name, qualify(path.read_text("utf-8"), schema)) for path in _files("functions", root)]


def migrations(schema: str = HOME, root: Path | None = None) -> list[Migration]:
    """Every migration in order of its number, which is its place in the list, from 1.

    Raises:
        ValueError: if a file's name is not `0001_words.sql` or a number is missing or taken twice.
    """
    check_schema_name(schema)
    found = [_migration(path, schema) for path in _files("migrations", root)]
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("sql/migrations: the numbers must be 0001, 0002, … without holes")
    return found


def qualify(sql: str, schema: str) -> str:
    """`sql` with every `holdfast.` and every `schema holdfast` in it naming `schema` instead."""
    return sql if schema == HOME else _QUALIFIER.sub(schema, sql)


def _files(kind: str, root: Path | None) -> list[Path]:
    return sorted((root or directory()).joinpath(kind).glob("*.sql"))


def _migration(path: Path, schema: str) -> Migration:
    match = _MIGRATION.fullmatch(path.name)
    if match is None:
        raise ValueError(f"sql/migrations/{path.name}: a migration is named like 0001_words.sql")
    return Migration(int(match["number"]), match["name"], qualify(path.read_text("utf-8"), schema))


def _cut(file: str, text: str) -> Iterator[tuple[str, str, str]]:
    """The sections of one file as (name, promise, statement)."""
    head, *rest = _SECTION.split(text)
    _, stray = _comments(head)
    if stray:
        raise ValueError(f"{file}: SQL before the first `-- name:`")
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        promise, statement = _comments(body)
        statement = statement.removesuffix(";").rstrip()
        if not statement:
            raise ValueError(f"{file}: the statement {name!r} is empty")
        yield name, promise, statement


def _comments(body: str) -> tuple[str, str]:
    """The comment lines that `body` begins with as one line, and what comes after them."""
    comments: list[str] = []
    lines = body.strip().splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("--")):
        comments.append(lines.pop(0).removeprefix("--").strip())
    return " ".join(filter(None, comments)), "\n".join(lines).strip()

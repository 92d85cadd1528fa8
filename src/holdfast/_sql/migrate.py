"""Installs and upgrades the schema, and says whether an installed one fits this version.

Each migration commits together with its row in `schema_version`, under a lock that ends with the transaction:
killed anywhere, it goes on where it was. Functions are replaced as a whole whenever their text has changed.
The statements are in `sql/queries/schema.sql`; nothing here knows what is in a migration.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncpg.exceptions import PostgresSyntaxError, UndefinedTableError

from holdfast._sql import statements
from holdfast._sql.statements import Migration, Statements
from holdfast.errors import ConfigurationError, SchemaMissing, SchemaTooNew, SchemaTooOld

if TYPE_CHECKING:
    from asyncpg import Connection, Record

_FUNCTIONS: Final = 0
"""The number in `schema_version` under which the functions are kept; migrations begin at 1."""

_PARAMETER: Final = re.compile(r"\$([0-9]+)")


class _Plan(NamedTuple):
    """What this version of the library wants to find in a schema."""

    schema: str
    statements: Statements
    migrations: list[Migration]
    functions: list[tuple[str, str]]
    wanted: dict[int, str]
    """Checksum by number, as `schema_version` holds them."""


async def migrate(connection: Connection[Record], schema: str, *, root: Path | None = None) -> list[int]:
    """Brings `schema` up to this version and returns the numbers of the migrations that this call applied.

    Safe to call from any number of processes at once; costs one query when there is nothing to do.
    `connection` must not be in a transaction.

    Raises:
        SchemaTooNew: if a newer version of the library has been here.
        SchemaTooOld: if a migration was edited after it was applied, which only happens before a release.
        ConfigurationError: if `schema` is a word that PostgreSQL reserves.
    """
    plan = _plan(schema, root)
    applied: list[int] = []
    while _difference(plan, await _installed(connection, plan)):
        async with connection.transaction(isolation="read_committed"):
            await connection.fetchval(plan.statements["schema.lock"], schema)
            await _ensure_schema(connection, plan)
            applied += await _apply_next(connection, plan)
    return applied


async def verify(connection: Connection[Record], schema: str, *, root: Path | None = None) -> None:
    """Returns when `schema` is exactly what this version needs; changes nothing.

    Raises:
        SchemaMissing: if nothing is installed under that name.
        SchemaTooOld: if a migration or a newer text of the functions is missing.
        SchemaTooNew: if a newer version of the library has been here.
    """
    plan = _plan(schema, root)
    installed = await _installed(connection, plan)
    if not installed:
        raise SchemaMissing(f"no holdfast schema {schema!r} in this database; run `{_command(schema)}`")
    if _difference(plan, installed):
        raise SchemaTooOld(
            f"schema {schema!r} is at version {max(installed)}, this holdfast needs {len(plan.migrations)}"
            f" and the functions that go with it; run `{_command(schema)}`"
        )


def _command(schema: str) -> str:
    """What brings this schema up to date, as one types it."""
    return "holdfast migrate" if schema == "holdfast" else f"holdfast migrate --schema {schema}"


def script(schema: str, *, after: int = 0, root: Path | None = None) -> str:
    """The same work as `migrate` as text for psql, for those who run migrations by hand.

    `after` leaves out the migrations up to that number, for a schema that has them.
    """
    plan = _plan(schema, root)
    return "\n".join(_script_parts(plan, after)) + "\n"


@lru_cache(maxsize=16)
def _plan(schema: str, root: Path | None) -> _Plan:
    migrations = statements.migrations(schema, root)
    functions = statements.functions(schema, root)
    wanted = {migration.number: _checksum(migration.sql) for migration in migrations}
    wanted[_FUNCTIONS] = _checksum(*(sql for _, sql in functions))
    # `root` is for tests, which bring migrations of their own; the bookkeeping is always the library's.
    return _Plan(schema, statements.load(schema), migrations, functions, wanted)


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


async def _installed(connection: Connection[Record], plan: _Plan) -> dict[int, str]:
    try:
        rows = await connection.fetch(plan.statements["schema.installed"])
    except UndefinedTableError:
        return {}
    except PostgresSyntaxError as error:  # the only thing in that statement that can differ is the name
        raise ConfigurationError(
            f"{plan.schema!r} is a word that PostgreSQL reserves; choose another schema name"
        ) from error
    return {row["number"]: row["checksum"] for row in rows}


def _difference(plan: _Plan, installed: Mapping[int, str]) -> list[int]:
    """The numbers that have to be applied, the functions last."""
    if unknown := installed.keys() - plan.wanted.keys():
        raise SchemaTooNew(
            f"schema {plan.schema!r} is at version {max(unknown)},"
            f" this holdfast knows {len(plan.migrations)};"
            " upgrade holdfast, `holdfast migrate` only goes forward"
        )
    if other := [n for n in installed if n != _FUNCTIONS and installed[n] != plan.wanted[n]]:
        raise SchemaTooOld(
            f"schema {plan.schema!r} was made with another text of migration {other[0]:04} than this holdfast"
            " has, which no two releases ever differ in; run `holdfast migrate` on a new schema"
        )
    missing = sorted(plan.wanted.keys() - installed.keys() - {_FUNCTIONS})
    if missing or installed.get(_FUNCTIONS) != plan.wanted[_FUNCTIONS]:
        missing.append(_FUNCTIONS)
    return missing


async def _ensure_schema(connection: Connection[Record], plan: _Plan) -> None:
    """Creates the schema only where it is missing: the role may not be allowed to, and then need not be."""
    if await connection.fetchval(plan.statements["schema.exists"], plan.schema):
        return
    await connection.execute(plan.statements["schema.create"])


async def _apply_next(connection: Connection[Record], plan: _Plan) -> list[int]:
    """Applies the first thing that is still missing now that the lock is held."""
    fresh = not await connection.fetchval(plan.statements["schema.has_versions"])
    missing = _difference(plan, {} if fresh else await _installed(connection, plan))
    if not missing:
        return []
    if missing[0] == _FUNCTIONS:
        await _install(connection, plan, _FUNCTIONS, "functions", [sql for _, sql in plan.functions])
        return []
    migration = plan.migrations[missing[0] - 1]
    await _install(connection, plan, migration.number, migration.name, [migration.sql])
    return [migration.number]


async def _install(
    connection: Connection[Record], plan: _Plan, number: int, name: str, texts: list[str]
) -> None:
    for text in texts:
        await connection.execute(text)
    await connection.execute(plan.statements["schema.create_versions"])
    await connection.execute(plan.statements["schema.record"], number, name, plan.wanted[number])


def _script_parts(plan: _Plan, after: int) -> Iterator[str]:
    yield f"-- holdfast: schema {plan.schema}, migrations after {after}, then the functions."
    yield "begin;"
    yield _literal(plan.statements["schema.lock"], plan.schema)
    yield plan.statements["schema.create"] + ";"
    for migration in plan.migrations[after:]:
        yield from _script_part(plan, migration.number, migration.name, [migration.sql])
    yield from _script_part(plan, _FUNCTIONS, "functions", [sql for _, sql in plan.functions])
    yield "commit;"


def _script_part(plan: _Plan, number: int, name: str, texts: list[str]) -> Iterator[str]:
    yield f"\n-- {number:04} {name}\n"
    yield from texts
    yield plan.statements["schema.create_versions"] + ";"
    yield _literal(plan.statements["schema.record"], str(number), name, plan.wanted[number])


def _literal(statement: str, *arguments: str) -> str:
    """`statement` with its parameters written in; for words and digits, which need no escaping."""
    return _PARAMETER.sub(lambda match: f"'{arguments[int(match[1]) - 1]}'", statement) + ";"

"""The schema that the library really installs, under another name than the one its files are written for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import pytest

from holdfast._sql import statements
from holdfast._sql.migrate import migrate, script, verify

if TYPE_CHECKING:
    from asyncpg import Connection, Record

NAME = "elsewhere"

DEFINITIONS = """
select proname, pg_get_functiondef(oid) as text from pg_proc where pronamespace = 'elsewhere'::regnamespace
union all
select relname, pg_get_viewdef(oid) from pg_class
where relnamespace = 'elsewhere'::regnamespace and relkind = 'v'
union all
select r.relname, pg_get_expr(d.adbin, d.adrelid)
from pg_attrdef d join pg_class r on r.oid = d.adrelid where r.relnamespace = 'elsewhere'::regnamespace
"""

SHAPE = """
select string_agg(line, E'\\n' order by line) from (
    select format('%s %s', oid::regprocedure, md5(pg_get_functiondef(oid))) as line from pg_proc
    where pronamespace = 'elsewhere'::regnamespace
    union all
    select format('%s.%s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod)) from pg_attribute
    join pg_class on pg_class.oid = attrelid
    where relnamespace = 'elsewhere'::regnamespace and relkind in ('r', 'v') and attnum > 0) lines
"""


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(empty_dsn)
    yield connection
    await connection.close()


async def test_nothing_in_it_refers_to_the_default_name(connection: Connection[Record]) -> None:
    await migrate(connection, NAME)
    rows = await connection.fetch(DEFINITIONS)
    assert rows
    assert [row["proname"] for row in rows if "holdfast" in row["text"]] == []
    assert await connection.fetchval("select to_regnamespace('holdfast')") is None


async def test_every_statement_fits_it(connection: Connection[Record]) -> None:
    await migrate(connection, NAME)
    wrong: dict[str, str] = {}
    for name, text in statements.load(NAME).items():
        try:
            await connection.prepare(text)
        except asyncpg.PostgresError as error:
            wrong[name] = str(error)
    assert wrong == {}


async def test_by_hand_and_by_migrate_are_the_same(connection: Connection[Record]) -> None:
    await migrate(connection, NAME)
    by_migrate = await connection.fetchval(SHAPE)
    await connection.execute(f"drop schema {NAME} cascade")
    await connection.execute(script(NAME))
    await verify(connection, NAME)
    assert await connection.fetchval(SHAPE) == by_migrate


async def test_functions_can_be_installed_over_themselves(connection: Connection[Record]) -> None:
    await migrate(connection, NAME)
    await connection.execute(f"update {NAME}.schema_version set checksum = 'another' where number = 0")
    assert await migrate(connection, NAME) == []
    await verify(connection, NAME)

"""Installing and upgrading a schema, against PostgreSQL, with migrations made for the test."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from holdfast._sql.migrate import migrate, script, verify
from holdfast.errors import ConfigurationError, SchemaMissing, SchemaTooNew, SchemaTooOld

if TYPE_CHECKING:
    from asyncpg import Connection, Record

TABLE = "create table holdfast.t (x integer);\ncreate index on holdfast.t (x);"
COLUMN = "alter table holdfast.t add y text not null default 'new';"
FUNCTION = """
create or replace function holdfast.answer() returns integer language sql
set search_path = pg_catalog, pg_temp as 'select {answer}';
"""


class Folder:
    """A scratch `sql/` folder whose versions are 1, 2, …"""

    def __init__(self, path: Path) -> None:
        self.path = path
        for kind in ("migrations", "functions", "queries"):
            (path / kind).mkdir(parents=True)

    def add(self, number: int, sql: str) -> Folder:
        (self.path / "migrations" / f"{number:04}_change.sql").write_text(sql)
        return self

    def answer(self, answer: int) -> Folder:
        (self.path / "functions" / "answer.sql").write_text(FUNCTION.format(answer=answer))
        return self


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return Folder(tmp_path / "one").add(1, TABLE).answer(1).path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return Folder(tmp_path / "two").add(1, TABLE).add(2, COLUMN).answer(2).path


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    return empty_dsn


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_installs_everything_once(connection: Connection[Record], two: Path) -> None:
    assert await migrate(connection, "holdfast", root=two) == [1, 2]
    assert await connection.fetchval("select holdfast.answer()") == 2
    assert await migrate(connection, "holdfast", root=two) == []
    await verify(connection, "holdfast", root=two)


async def test_up_to_date_costs_one_query(connection: Connection[Record], two: Path) -> None:
    await migrate(connection, "holdfast", root=two)
    seen: list[str] = []
    with connection.query_logger(lambda query: seen.append(query.query)):
        await migrate(connection, "holdfast", root=two)
        await asyncio.sleep(0)  # asyncpg tells its loggers one turn later
    assert len(seen) == 1


async def test_upgrades(connection: Connection[Record], one: Path, two: Path) -> None:
    assert await migrate(connection, "holdfast", root=one) == [1]
    await connection.execute("insert into holdfast.t values (7)")
    assert await migrate(connection, "holdfast", root=two) == [2]
    row = await connection.fetchrow("select x, y, holdfast.answer() from holdfast.t")
    assert row is not None
    assert tuple(row) == (7, "new", 2)


async def test_changed_functions_alone_are_installed(connection: Connection[Record], tmp_path: Path) -> None:
    before = Folder(tmp_path / "before").add(1, TABLE).answer(1).path
    after = Folder(tmp_path / "after").add(1, TABLE).answer(3).path
    await migrate(connection, "holdfast", root=before)
    with pytest.raises(SchemaTooOld, match="holdfast migrate"):
        await verify(connection, "holdfast", root=after)
    assert await migrate(connection, "holdfast", root=after) == []
    assert await connection.fetchval("select holdfast.answer()") == 3
    await verify(connection, "holdfast", root=after)


async def test_a_failing_migration_leaves_the_version_before(
    connection: Connection[Record], one: Path, tmp_path: Path
) -> None:
    broken = Folder(tmp_path / "broken").add(1, TABLE).add(2, COLUMN + "select 1 / 0;").answer(2).path
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(connection, "holdfast", root=broken)
    columns = "select count(*) from pg_attribute where attrelid = 'holdfast.t'::regclass and attnum > 0"
    assert await connection.fetchval(columns) == 1
    with pytest.raises(SchemaTooOld):
        await verify(connection, "holdfast", root=broken)
    assert await migrate(connection, "holdfast", root=one) == []
    await verify(connection, "holdfast", root=one)


async def test_killed_in_a_migration_goes_on_from_there(
    connection: Connection[Record], dsn: str, two: Path, tmp_path: Path
) -> None:
    slow = Folder(tmp_path / "slow").add(1, TABLE).add(2, COLUMN + "select pg_sleep(60);").path
    victim = asyncio.create_task(_migrate_and_be_killed(dsn, slow), name="victim")
    sleeping = (
        "select pid from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    )
    while (pid := await connection.fetchval(sleeping)) is None:
        await asyncio.sleep(0.01)
    await connection.execute("select pg_terminate_backend($1)", pid)
    await victim
    with pytest.raises(SchemaTooOld):
        await verify(connection, "holdfast", root=two)
    assert await migrate(connection, "holdfast", root=two) == [2]
    assert await connection.fetchval("select holdfast.answer()") == 2


async def _migrate_and_be_killed(dsn: str, root: Path) -> None:
    connection = await asyncpg.connect(dsn)
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
        await migrate(connection, "holdfast", root=root)


async def test_twenty_at_once_apply_everything_once(dsn: str, two: Path) -> None:
    connections = [await asyncpg.connect(dsn) for _ in range(20)]
    applied = await asyncio.gather(*(migrate(each, "holdfast", root=two) for each in connections))
    assert sorted(number for numbers in applied for number in numbers) == [1, 2]
    for each in connections:
        await each.close()


async def test_schemas_do_not_know_each_other(connection: Connection[Record], one: Path, two: Path) -> None:
    await migrate(connection, "left_side", root=one)
    await migrate(connection, "right_side", root=two)
    assert await connection.fetchval("select left_side.answer() * 10 + right_side.answer()") == 12
    with pytest.raises(SchemaMissing, match=r"'holdfast'.*holdfast migrate"):
        await verify(connection, "holdfast", root=one)
    with pytest.raises(SchemaMissing, match="run `holdfast migrate --schema other_side`"):
        await verify(connection, "other_side", root=one)


async def test_a_newer_schema_is_left_alone(connection: Connection[Record], one: Path, two: Path) -> None:
    await migrate(connection, "holdfast", root=two)
    with pytest.raises(SchemaTooNew, match=r"version 2.*knows 1"):
        await verify(connection, "holdfast", root=one)
    with pytest.raises(SchemaTooNew):
        await migrate(connection, "holdfast", root=one)
    assert await connection.fetchval("select holdfast.answer()") == 2


async def test_a_migration_that_was_edited_is_noticed(
    connection: Connection[Record], one: Path, tmp_path: Path
) -> None:
    edited = Folder(tmp_path / "edited").add(1, TABLE + "-- and more").answer(1).path
    await migrate(connection, "holdfast", root=one)
    with pytest.raises(SchemaTooOld, match="another text of migration 0001"):
        await migrate(connection, "holdfast", root=edited)


async def test_a_schema_that_a_dba_made_needs_no_right_to_create(
    connection: Connection[Record], one: Path
) -> None:
    if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("makes a role, which takes a superuser")
    role = f"holdfast_test_{secrets.token_hex(4)}"  # roles belong to the whole server
    await connection.execute(f"create role {role}; create schema holdfast authorization {role}")
    await connection.execute(f"set role {role}")
    try:
        assert await migrate(connection, "holdfast", root=one) == [1]
    finally:
        await connection.execute(f"reset role; drop schema holdfast cascade; drop role {role}")


async def test_a_reserved_word_is_refused(connection: Connection[Record], one: Path) -> None:
    with pytest.raises(ConfigurationError, match="'order' is a word that PostgreSQL reserves"):
        await migrate(connection, "order", root=one)
    assert await connection.fetchval("select to_regnamespace('\"order\"')") is None


async def test_the_script_does_the_same_by_hand(connection: Connection[Record], one: Path, two: Path) -> None:
    await connection.execute(script("by_hand", root=one))
    await verify(connection, "by_hand", root=one)
    await connection.execute(script("by_hand", after=1, root=two))
    await verify(connection, "by_hand", root=two)
    assert await migrate(connection, "by_hand", root=two) == []


async def test_the_isolation_that_a_dba_chose_does_not_matter(dsn: str, two: Path) -> None:
    settings = {"default_transaction_isolation": "serializable"}
    connections = [await asyncpg.connect(dsn, server_settings=settings) for _ in range(5)]
    await asyncio.gather(*(migrate(each, "holdfast", root=two) for each in connections))
    for each in connections:
        await verify(each, "holdfast", root=two)
        await each.close()

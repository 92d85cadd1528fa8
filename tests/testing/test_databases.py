"""A fresh database per test, and nothing left behind by whoever was killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from holdfast._sql import migrate
from holdfast.errors import ConfigurationError
from holdfast.testing import databases as databases_module
from holdfast.testing.databases import Databases
from holdfast.testing.plugin import MakeDatabase
from holdfast.testing.postgres import Server


@pytest.fixture
def databases(holdfast_server: Server) -> Iterator[Databases]:
    with Databases(holdfast_server.dsn) as made:
        yield made


async def names(dsn: str, pattern: str = "holdfast_") -> list[str]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("select datname from pg_database where datname ~ $1", pattern)
    await connection.close()
    return [row["datname"] for row in rows]


async def name_of(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    name: str = await connection.fetchval("select current_database()")
    await connection.close()
    return name


async def test_it_is_migrated_and_one_s_own(holdfast_database: MakeDatabase) -> None:
    mine, another = await asyncpg.connect(holdfast_database()), await asyncpg.connect(holdfast_database())
    await migrate.verify(mine, "holdfast")
    await mine.execute("create table only_mine ()")
    assert await mine.fetchval("select to_regclass('only_mine') is not null")
    assert await another.fetchval("select to_regclass('only_mine') is null")
    await mine.close()
    await another.close()


async def test_it_may_be_empty(holdfast_database: MakeDatabase) -> None:
    connection = await asyncpg.connect(holdfast_database(migrated=False))
    assert await connection.fetchval("select to_regnamespace('holdfast') is null")
    await connection.close()


async def test_it_is_dropped_whoever_still_uses_it(databases: Databases, holdfast_server: Server) -> None:
    dsn = databases.take()
    left_open = await asyncpg.connect(dsn)
    name = await name_of(dsn)
    databases.give_back(dsn)
    databases.take()
    databases.take(migrated=False)  # the turns are taken in order: what was given back is gone by now
    assert await names(holdfast_server.dsn, name) == []
    left_open.terminate()


async def test_a_session_takes_its_databases_along(holdfast_server: Server) -> None:
    with Databases(holdfast_server.dsn) as databases:
        name = await name_of(databases.take())
        ours = name.rsplit("_", 1)[0]
        databases.take(migrated=False)
        assert len(await names(holdfast_server.dsn, ours)) >= 2
    assert await names(holdfast_server.dsn, ours) == []


KILLED = """
import os, signal, sys
from holdfast.testing.databases import Databases
with Databases(sys.argv[1]) as databases:
    print(databases.take(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_the_next_session_clears_up_after_a_killed_one(holdfast_server: Server) -> None:
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, holdfast_server.dsn, stdout=subprocess.PIPE
    )
    output, _ = await killed.communicate()
    name = urlsplit(output.decode().strip()).path[1:]
    ours = name.rsplit("_", 1)[0]
    await sessions_ended(holdfast_server.dsn, ours)
    with Databases(holdfast_server.dsn) as alive:
        kept = await name_of(alive.take())
        with Databases(holdfast_server.dsn):
            assert await names(holdfast_server.dsn, ours) == []
            assert await names(holdfast_server.dsn, kept) == [kept]


async def sessions_ended(dsn: str, ours: str) -> None:
    """The server notices that a client was killed when it next looks; its lock tells."""
    tag = int.from_bytes(bytes.fromhex(ours.rsplit("_", 1)[1]), signed=True)
    connection = await asyncpg.connect(dsn)
    await connection.execute("select pg_advisory_lock($1, $2)", databases_module._SESSION, tag)
    await connection.close()


async def test_a_template_nobody_uses_any_more_goes(holdfast_server: Server, databases: Databases) -> None:
    oid = (await name_of(databases.take())).split("_")[2]
    old = f"holdfast_template_{oid}_00c0ffee"
    admin = await asyncpg.connect(holdfast_server.dsn)
    await admin.execute(f'create database "{old}" allow_connections false')
    with Databases(holdfast_server.dsn) as another:
        assert await names(holdfast_server.dsn, old) == []
        await check_schema(another.take())
    await admin.close()


async def check_schema(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate.verify(connection, "holdfast")
    await connection.close()


async def test_sessions_that_start_at_once_build_one_template(
    holdfast_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases_module, "_fingerprint", lambda: "5ca1ab1e")
    built: list[object] = []
    real = migrate.migrate

    async def counted(connection: asyncpg.Connection[asyncpg.Record], schema: str) -> list[int]:
        built.append(connection)
        return await real(connection, schema)

    monkeypatch.setattr(migrate, "migrate", counted)

    def session() -> None:
        with Databases(holdfast_server.dsn) as databases:
            asyncio.run(check_schema(databases.take()))

    await asyncio.gather(*(asyncio.to_thread(session) for _ in range(3)))
    assert len(built) == 1


async def test_it_survives_a_test_that_ends_every_session(
    databases: Databases, holdfast_server: Server
) -> None:
    dsn = databases.take()
    admin = await asyncpg.connect(holdfast_server.dsn)
    tag = int.from_bytes(bytes.fromhex((await name_of(dsn)).split("_")[3]), signed=True)
    assert await admin.fetchval(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' "
        "and classid = $1 and objid = ($2::bigint & 4294967295)",
        databases_module._SESSION,
        tag,
    )
    await admin.close()
    for _ in range(4):
        await check_schema(databases.take())


def test_a_server_that_is_too_old_is_refused(
    holdfast_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases_module, "_OLDEST", 99)
    with pytest.raises(ConfigurationError, match="99 or newer"), Databases(holdfast_server.dsn):
        pass


def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(OSError), Databases("postgresql://localhost:1/postgres"):  # noqa: PT011
        pass

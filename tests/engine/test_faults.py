"""The proxy does what it says: otherwise the tests that use it prove nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from holdfast._store.connection import Connection, ConnectionLost, connect, deadline
from holdfast.testing.faults import Direction, Proxy


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
async def through(proxy: Proxy) -> AsyncIterator[Connection]:
    connection = await connect(proxy.dsn, role="test")
    yield connection
    connection.terminate()


async def test_it_passes_everything(proxy: Proxy, through: Connection) -> None:
    text = "x" * 1_000_000
    assert await through.fetchval("select $1::text || 'y'", text) == text + "y"
    assert (proxy.links, proxy.opened) == (1, 1)
    await through.close()
    while proxy.links:
        await asyncio.sleep(0.001)


async def test_a_client_that_asks_for_tls_is_told_no(proxy: Proxy) -> None:
    connection = await asyncpg.connect(proxy.dsn, ssl="prefer")
    assert await connection.fetchval("select 1") == 1
    await connection.close()


async def test_a_server_that_is_away_is_a_reset(dsn: str) -> None:
    async with Proxy("postgresql://nobody@127.0.0.1:1/x") as proxy:
        with pytest.raises(ConnectionLost):
            await connect(proxy.dsn, role="test")


async def test_refuse_and_heal(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionLost):
        await connect(proxy.dsn, role="test")
    proxy.heal()
    (await connect(proxy.dsn, role="test")).terminate()


async def test_reset_is_noticed_at_once(proxy: Proxy, through: Connection) -> None:
    closed = asyncio.Event()
    through.add_termination_listener(lambda _: closed.set())
    proxy.reset()
    await closed.wait()
    with pytest.raises(ConnectionLost):
        async with deadline(through, 1):
            await through.fetchval("select 1")


@pytest.mark.parametrize("direction", Direction)
async def test_swallow_tells_nobody_and_stays(
    proxy: Proxy, through: Connection, admin: Connection, direction: Direction
) -> None:
    await admin.execute("create table t (n int)")
    proxy.swallow(direction)
    with pytest.raises(ConnectionLost, match=r"within 0\.2 s"):
        async with deadline(through, 0.2):
            await through.execute("insert into t values (1)")
    assert proxy.links == 1  # the server has not been told
    async with asyncio.timeout(5):
        while await admin.fetchval("select count(*) from t") != (direction is Direction.TO_CLIENT):
            await asyncio.sleep(0.01)
    proxy.heal()
    (await connect(proxy.dsn, role="test")).terminate()


async def test_strand_spares_new_connections(proxy: Proxy, through: Connection) -> None:
    proxy.strand()
    with pytest.raises(ConnectionLost):
        async with deadline(through, 0.1):
            await through.execute("select 1")
    fresh = await connect(proxy.dsn, role="test")
    assert await fresh.fetchval("select 1") == 1
    fresh.terminate()


async def test_delay_is_each_way_and_keeps_the_order(proxy: Proxy, through: Connection) -> None:
    proxy.delay(0.05)
    started = time.perf_counter()
    assert await through.execute("select 1") == "SELECT 1"
    assert 0.09 <= time.perf_counter() - started < 5
    proxy.heal()
    rows = await through.fetch("select n from generate_series(1, 5000) n")
    assert [row["n"] for row in rows] == [*range(1, 5001)]


async def test_a_deaf_connection_does_everything_but_hear(proxy: Proxy, through: Connection) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    await through.add_listener("c", lambda *what: heard.put_nowait(what[3]))
    proxy.deafen()
    await through.execute("notify c, 'lost'")
    proxy.heal()
    await through.execute("notify c, 'heard'")
    assert await heard.get() == "heard"
    assert proxy.dropped_notifications == 1


async def test_lose_request_and_lose_reply_of_a_prepared_statement(
    proxy: Proxy, through: Connection, admin: Connection
) -> None:
    await admin.execute("create table t (n int)")
    await through.execute("insert into t values ($1)", 1)
    lost = proxy.lose_reply("insert into t")
    with pytest.raises(ConnectionLost):
        async with deadline(through, 5):
            await through.execute("insert into t values ($1)", 2)
    assert lost.happened.is_set()
    again = await connect(proxy.dsn, role="test")
    assert await again.fetchval("select sum(n) from t") == 3
    lost = proxy.lose_request("insert into t")
    with pytest.raises(ConnectionLost):
        async with deadline(again, 5):
            await again.execute("insert into t values ($1)", 3)
    assert lost.happened.is_set()
    assert await admin.fetchval("select sum(n) from t") == 3
    again.terminate()


async def test_lose_the_reply_of_commit(proxy: Proxy, through: Connection, admin: Connection) -> None:
    await admin.execute("create table t (n int)")
    proxy.lose_reply("COMMIT")
    with pytest.raises(ConnectionLost):
        async with deadline(through, 5), through.transaction():
            await through.execute("insert into t values (1)")
    assert await admin.fetchval("select count(*) from t") == 1


async def talk(dsn: str) -> None:
    connection = await connect(dsn, role="test", timeout=5)
    async with deadline(connection, 5):
        for n in range(1000):
            await connection.fetchval("select $1::int", n)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("after", [0, 1, 30, 500])
async def test_cut_behind_a_byte(proxy: Proxy, direction: Direction, after: int) -> None:
    fault = proxy.cut(direction, after)
    with pytest.raises(ConnectionLost):
        await talk(proxy.dsn)
    assert fault.happened.is_set()
    (await connect(proxy.dsn, role="test")).terminate()  # once was asked for


async def test_leaving_ends_all_connections_and_keeps_the_error(dsn: str) -> None:
    with pytest.raises(KeyError):  # noqa: PT012
        async with Proxy(dsn) as proxy:
            connection = await connect(proxy.dsn, role="test")
            proxy.swallow()
            raise KeyError
    connection.terminate()
    assert proxy.links == 0

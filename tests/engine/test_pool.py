"""The pool lends, in turn, what works; and lets nothing broken back in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias

import pytest

from holdfast import _clock
from holdfast._engine.pool import IDLE_LIMIT, Pool
from holdfast._store.connection import Connection, ConnectionLost, deadline
from holdfast.errors import DatabaseUnavailable, NotRunning
from holdfast.testing.faults import Proxy

from .conftest import FakeClock, Signals

Make: TypeAlias = Callable[..., Pool]


@pytest.fixture
async def make(dsn: str) -> AsyncIterator[Make]:
    """Makes pools and closes them."""
    pools: list[Pool] = []

    def make_one(size: int, patience: float = 5, *, to: str = dsn) -> Pool:
        pools.append(Pool(to, size, patience))
        return pools[-1]

    yield make_one
    for pool in pools:
        await pool.aclose()


async def kill(admin: Connection, pid: int) -> None:
    """Terminate a backend and wait until it is gone."""
    assert await admin.fetchval("select pg_terminate_backend($1, 5000)", pid)


async def test_it_opens_what_it_needs_and_lends_it_again(make: Make) -> None:
    pool = make(2)
    assert pool.statistics().opened == 0
    for _ in range(3):
        async with pool.acquire() as one:
            assert await one.fetchval("select 1") == 1
    assert pool.statistics().opened == 1
    async with pool.acquire() as one, pool.acquire() as two:
        assert one is not two
        assert pool.statistics().busy == 2
    statistics = pool.statistics()
    assert (statistics.opened, statistics.idle, statistics.busy, statistics.dropped) == (2, 2, 0, 0)


@pytest.mark.parametrize("size", [1, 3])
async def test_who_asks_first_is_served_first_and_never_more_than_size(make: Make, size: int) -> None:
    pool = make(size)
    served: list[int] = []
    async with AsyncExitStack() as stack:  # how long opening takes has no order
        for _ in range(size):
            await stack.enter_async_context(pool.acquire())

    async def work(n: int) -> None:
        async with pool.acquire() as connection:
            served.append(n)
            await connection.fetchval("select 1")

    async with asyncio.TaskGroup() as group:
        for n in range(40):
            group.create_task(work(n))
    assert served == [*range(40)]
    assert pool.statistics().opened == size


async def test_patience_ends_when_all_are_in_use(make: Make) -> None:
    pool = make(1, 2)
    async with pool.acquire():
        with pytest.raises(DatabaseUnavailable, match="in use"):
            await pool.acquire().__aenter__()
    async with pool.acquire() as connection:
        assert await connection.fetchval("select 1") == 1
    assert pool.statistics().waiting == 0


async def test_cancelling_who_waits_disturbs_nobody(make: Make) -> None:
    pool = make(1)

    async def work() -> str:
        async with pool.acquire():
            return "served"

    async with asyncio.TaskGroup() as group, pool.acquire():
        tasks = [group.create_task(work()) for _ in range(4)]
        while pool.statistics().waiting < 4:
            await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
    assert [task.cancelled() for task in tasks] == [True, False, True, False]
    assert pool.statistics().opened == 1


async def test_a_connection_that_died_idle_is_replaced(make: Make, admin: Connection) -> None:
    pool = make(1)
    async with pool.acquire() as connection:
        pid = connection.get_server_pid()
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _: closed.set())
    await kill(admin, pid)
    await closed.wait()
    async with pool.acquire() as connection:
        assert await connection.fetchval("select 1") == 1
        assert connection.get_server_pid() != pid


async def test_one_connection_lost_makes_the_others_suspect(make: Make, admin: Connection) -> None:
    pool = make(3)
    async with pool.acquire(), pool.acquire():
        pass
    assert pool.statistics().idle == 2
    with pytest.raises(ConnectionLost):
        async with pool.acquire() as connection, deadline(connection, 5):
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
    assert (pool.statistics().idle, pool.statistics().dropped) == (0, 2)


async def test_a_connection_that_comes_back_in_a_transaction_is_dropped(
    make: Make, admin: Connection
) -> None:
    await admin.execute("create table t (n int)")
    pool = make(1)
    async with pool.acquire() as connection:
        await connection.execute("begin; insert into t values (1)")
    async with pool.acquire() as connection:
        assert await connection.fetchval("select count(*) from t") == 0
    assert pool.statistics().dropped == 1


async def test_an_error_of_the_block_passes_and_spares_the_connection(make: Make) -> None:
    pool = make(1)
    with pytest.raises(KeyError):
        async with pool.acquire():
            raise KeyError
    assert (pool.statistics().idle, pool.statistics().dropped) == (1, 0)


async def test_a_cancelled_block_gives_its_place_back_at_once(make: Make) -> None:
    pool = make(1)
    sent = asyncio.Event()

    async def work() -> None:
        async with pool.acquire() as connection:
            sent.set()
            await connection.execute("select pg_sleep(30)")

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await sent.wait()
        task.cancel()
    assert task.cancelled()
    async with pool.acquire() as connection:
        assert await connection.fetchval("select 1") == 1
    assert time.monotonic() - started < 2


async def test_what_was_idle_too_long_is_not_lent(make: Make) -> None:
    clock = FakeClock()
    uninstall = _clock.install(clock)
    try:
        pool = make(3)
        async with pool.acquire(), pool.acquire():
            pass
        clock.now += IDLE_LIMIT + 1
        async with pool.acquire() as connection:
            assert await connection.fetchval("select 1") == 1
        assert (pool.statistics().opened, pool.statistics().dropped) == (3, 2)
    finally:
        uninstall()


async def test_a_black_hole_holds_nobody_up_on_the_way_out(make: Make, dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        pool = make(1, 5, to=proxy.dsn)
        started = time.monotonic()
        with pytest.raises(ConnectionLost):  # noqa: PT012
            async with pool.acquire() as connection, deadline(connection, 0.2):
                proxy.swallow()
                await connection.execute("select 1")
        assert time.monotonic() - started < 4
        proxy.heal()
        async with pool.acquire() as connection:
            assert await connection.fetchval("select 1") == 1


async def test_a_server_that_comes_back_is_only_a_delay(make: Make, dsn: str, signals: Signals) -> None:
    async with Proxy(dsn) as proxy:
        proxy.refuse()
        pool = make(2, 30, to=proxy.dsn)

        async def work() -> int:
            async with pool.acquire() as connection:
                return int(await connection.fetchval("select 1"))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for _ in range(10)]
            for _ in range(6):
                await signals.next("pool.retry")
            proxy.heal()
            started = time.monotonic()
        assert sum(task.result() for task in tasks) == 10
        assert time.monotonic() - started < 5


async def test_a_server_that_stays_away_is_the_one_clear_error(
    make: Make, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(dsn) as proxy:
        proxy.refuse()
        pool = make(1, 2, to=proxy.dsn)
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="for 2 s") as caught:
            await pool.acquire().__aenter__()
        assert 1.9 < time.monotonic() - started < 6
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert len(caplog.records) == 1  # one line for an outage, not one for a try
        proxy.heal()
        async with pool.acquire() as connection:
            assert await connection.fetchval("select 1") == 1


async def test_a_server_without_a_connection_to_spare_is_waited_for(
    make: Make, limited_dsn: str, signals: Signals
) -> None:
    first, second = make(1, to=limited_dsn), make(1, to=limited_dsn)

    async def work() -> object:
        async with second.acquire() as connection:
            return await connection.fetchval("select 1")

    async with asyncio.TaskGroup() as group:
        async with first.acquire():
            task = group.create_task(work())
            await signals.next("pool.retry")
        await first.aclose()
    assert task.result() == 1


async def test_who_cannot_connect_takes_what_comes_back(
    make: Make, limited_dsn: str, signals: Signals
) -> None:
    pool = make(2, to=limited_dsn)

    async def work() -> int:
        async with pool.acquire() as connection:
            return connection.get_server_pid()

    async with asyncio.TaskGroup() as group, pool.acquire() as connection:
        pid = connection.get_server_pid()
        task = group.create_task(work())
        await signals.next("pool.retry")
    assert task.result() == pid


async def test_closing_is_bounded(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(2)
    taken = asyncio.Event()

    async def work() -> None:
        async with pool.acquire() as connection, deadline(connection, 60):
            taken.set()
            await connection.execute("select pg_sleep(30)")

    started = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            await taken.wait()
            await pool.aclose(0.1)
    assert caught.group_contains(ConnectionLost)
    assert time.monotonic() - started < 2
    assert "cuts off 1" in caplog.text
    with pytest.raises(NotRunning):
        await pool.acquire().__aenter__()
    assert (pool.statistics().busy, pool.statistics().idle) == (0, 0)


async def test_closing_leaves_no_backend(make: Make, admin: Connection) -> None:
    pool = make(3)
    async with pool.acquire(), pool.acquire(), pool.acquire():
        pass
    await pool.aclose()
    async with asyncio.timeout(5):
        while await admin.fetchval(
            "select count(*) from pg_stat_activity"
            " where application_name = 'holdfast pool' and datname = current_database()"
        ):
            await asyncio.sleep(0.01)

"""Time that a test can move."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import TypeAlias

import asyncpg
import pytest

from holdfast import _clock
from holdfast._engine.waiters import Waiters
from holdfast.testing.clock import DatabaseClock, ProcessClock

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def ahead(connection: Connection) -> float:
    """Seconds by which the database's clock for deadlines is ahead of the real one."""
    seconds: float = await connection.fetchval(
        "select extract(epoch from holdfast.now() - clock_timestamp())::float8"
    )
    return round(seconds, 1)


async def test_the_database_s_clock_moves_and_is_put_right(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    body = "select pg_get_functiondef('holdfast.now'::regproc)"
    before = await connection.fetchval(body)
    async with DatabaseClock(dsn) as clock:
        assert await ahead(connection) == 0
        await clock.advance(3600)
        assert await ahead(connection) == 3600
        await clock.advance(timedelta(days=30))
        await clock.advance(-0.5)
        assert await ahead(connection) == 30 * 86400 + 3599.5
        assert clock.offset == timedelta(days=30, seconds=3599.5)
    assert await ahead(connection) == 0
    assert await connection.fetchval(body) == before
    await connection.close()


async def test_plans_that_are_cached_see_it_too(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    statement = await connection.prepare("select holdfast.now()")
    async with DatabaseClock(dsn) as clock:
        earlier: list[datetime] = [await statement.fetchval() for _ in range(10)]
        await clock.advance(60)
        assert await statement.fetchval() - earlier[-1] >= timedelta(seconds=60)
    await connection.close()


async def test_executors_live_on(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    insert = "insert into holdfast.executors (name, started_at, heartbeat_at) "
    await connection.execute(insert + "select 'e', t, t from holdfast.now() as t")
    silent = "select extract(epoch from holdfast.now() - heartbeat_at)::float8 from holdfast.executors"
    async with DatabaseClock(dsn) as clock:
        await clock.advance(86400)
        assert await connection.fetchval(silent) < 60
    assert await connection.fetchval(silent) < 60
    await connection.close()


async def test_waiters_look_again(dsn: str) -> None:
    waiters, looks = Waiters(), asyncio.Queue[int]()

    async def look() -> None:
        looks.put_nowait(1)

    waiting = asyncio.create_task(waiters.until(["key"], look))
    await looks.get()
    async with DatabaseClock(dsn) as clock:
        await clock.advance(60)
        await asyncio.wait_for(looks.get(), 5)
    waiting.cancel()


async def test_it_is_only_used_in_its_block(dsn: str) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await DatabaseClock(dsn).advance(1)


def test_this_process_was_frozen() -> None:
    monotonic, wall = _clock.monotonic(), _clock.utcnow()
    with ProcessClock() as clock:
        clock.freeze(100)
        assert 100 <= _clock.monotonic() - monotonic < 110
        assert timedelta(seconds=100) <= _clock.utcnow() - wall < timedelta(seconds=110)
    assert _clock.monotonic() - monotonic < 10


def test_the_wall_clock_jumps_and_nothing_else() -> None:
    with ProcessClock() as clock:
        clock.jump(-3600)
        assert abs(_clock.time_ns() - time.time_ns() + 3_600_000_000_000) < 1_000_000_000
        assert abs(_clock.monotonic() - time.monotonic()) < 1


async def test_deadlines_of_a_frozen_process_have_passed() -> None:
    waiters, looks = Waiters(), asyncio.Queue[int]()

    async def look() -> None:
        looks.put_nowait(1)

    with ProcessClock() as clock:
        waiting = asyncio.create_task(waiters.until(["key"], look, deadline=_clock.monotonic() + 3600))
        await looks.get()
        clock.freeze(3601)
        await asyncio.wait_for(waiting, 5)

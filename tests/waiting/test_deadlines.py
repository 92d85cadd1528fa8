"""Durable deadlines: by the database's clock, through any number of processes [W9]."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, quick, until

HOUR = 3600.0


@pytest.fixture
async def clock(dsn: str) -> AsyncIterator[DatabaseClock]:
    async with DatabaseClock(dsn) as clock:
        yield clock


@hf.workflow
async def never_ends() -> None:
    await hf.recv("never")


@hf.workflow
async def wait_in_recv() -> str:
    try:
        return str(await hf.recv("topic", timeout=HOUR))
    except hf.WaitTimeout:
        return "late"


@hf.workflow
async def wait_in_event() -> str:
    try:
        return str(await hf.get_event("other", "key", timeout=HOUR))
    except hf.WaitTimeout:
        return "late"


@hf.workflow
async def wait_in_sleep() -> str:
    await hf.sleep(timedelta(hours=1))
    return "late"


@hf.workflow
async def wait_until() -> str:
    await hf.sleep_until(await begin_time() + timedelta(hours=1))
    return "late"


@hf.step
async def begin_time() -> datetime:
    return datetime.now(UTC)


@hf.workflow
async def wait_for_result() -> str:
    handle = await hf.start(never_ends(), id="child")
    try:
        await handle.result(timeout=HOUR)
    except hf.WaitTimeout:
        return "late"
    return "ended"


WAITS = [wait_in_recv, wait_in_event, wait_in_sleep, wait_until, wait_for_result]


async def deadlines(database: Connection) -> list[datetime]:
    rows = await database.fetch(
        "select deadline from holdfast.steps where finished_at is null order by step_id"
    )
    return [row["deadline"] for row in rows if row["deadline"] is not None]


async def _waiting(database: Connection) -> bool:
    return bool(await deadlines(database))


@pytest.mark.parametrize("wf", WAITS, ids=lambda wf: wf.name)
async def test_w9_after_a_crash_only_the_rest_is_waited(
    processes: Processes, database: Connection, clock: DatabaseClock, wf: hf.Workflow[[], str]
) -> None:
    rt = await processes.runtime(wf, never_ends, settings=quick(lease=60))
    await rt.start(wf(), id="one")
    await until(lambda: _waiting(database), "a recorded deadline")
    (deadline,) = await deadlines(database)
    for _ in range(2):
        await clock.advance(HOUR / 3)
        await processes.leave(rt)
        rt = await processes.runtime(wf, never_ends, settings=quick(lease=60))
        assert await deadlines(database) == [deadline], "recorded once"
        with pytest.raises(hf.WaitTimeout):
            await rt.handle(wf, "one").result(timeout=0.02)
    await clock.advance(HOUR / 3 + 1)
    assert await rt.handle(wf, "one").result(PATIENCE) == "late"


@pytest.mark.parametrize("wf", WAITS, ids=lambda wf: wf.name)
async def test_w9_a_deadline_that_passed_while_nobody_ran_is_over_at_once(
    processes: Processes, database: Connection, clock: DatabaseClock, wf: hf.Workflow[[], str]
) -> None:
    rt = await processes.runtime(wf, never_ends, settings=quick(lease=60))
    await rt.start(wf(), id="one")
    await until(lambda: _waiting(database), "a recorded deadline")
    await processes.leave(rt)
    await clock.advance(HOUR * 24)
    rt = await processes.runtime(wf, never_ends, settings=quick(lease=60))
    assert await rt.handle(wf, "one").result(PATIENCE) == "late"


async def test_w9_a_past_deadline_still_makes_one_attempt(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    @hf.workflow
    async def tell() -> None:
        await hf.set_event("key", "in time")

    rt = await processes.runtime(wait_in_recv, wait_in_event, settings=quick(lease=60))
    await rt.start(wait_in_recv(), id="recv")
    await rt.start(wait_in_event(), id="event")
    await until(lambda: _both(database), "two deadlines")
    await processes.leave(rt)
    await clock.advance(HOUR * 24)
    client = await processes.client()
    await client.send("recv", "in time", "topic")
    teller = await processes.runtime(tell, settings=quick(lease=60))
    await teller.run(tell(), id="other")
    await processes.leave(teller)
    rt = await processes.runtime(wait_in_recv, wait_in_event, settings=quick(lease=60))
    assert await rt.handle(wait_in_recv, "recv").result(PATIENCE) == "in time"
    assert await rt.handle(wait_in_event, "event").result(PATIENCE) == "in time"


async def _both(database: Connection) -> bool:
    return len(await deadlines(database)) == 2


async def test_w9_nothing_is_written_for_a_wait_that_is_served_at_once(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def served() -> list[object]:
        me = hf.current().workflow_id
        await hf.send(me, 1, "topic")
        await hf.set_event("key", 2)
        return [await hf.recv("topic", timeout=HOUR), await hf.get_event(me, "key", timeout=HOUR)]

    await database.execute("create table public.written (step_id text, done boolean)")
    await database.execute(
        "create function public.note() returns trigger language plpgsql as $$ begin "
        "insert into public.written values (new.step_id, new.finished_at is not null); return new; end $$"
    )
    await database.execute(
        "create trigger note after insert or update on holdfast.steps "
        "for each row execute function public.note()"
    )
    rt = await processes.runtime(served, settings=quick())
    assert await rt.run(served()) == [1, 2]
    written = await database.fetch("select step_id, done from public.written order by step_id")
    assert [tuple(row) for row in written] == [(str(number), True) for number in range(1, 5)]


async def test_w9_a_sleep_of_a_year_is_one_timer_and_one_row(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    @hf.workflow
    async def year() -> str:
        await hf.sleep(timedelta(days=365))
        return "a year later"

    rt = await processes.runtime(year, settings=quick(lease=60))
    handles = [await rt.start(year(), id=str(number)) for number in range(50)]
    await until(lambda: _fifty(database), "fifty deadlines")
    await clock.advance(timedelta(days=364, hours=23))
    await asyncio.sleep(0)
    assert len(await deadlines(database)) == 50
    await clock.advance(timedelta(hours=2))
    assert await asyncio.gather(*(handle.result(PATIENCE) for handle in handles)) == ["a year later"] * 50


async def _fifty(database: Connection) -> bool:
    return len(await deadlines(database)) == 50


async def test_w9_a_short_timeout_is_over_in_time(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def short() -> list[str]:
        said = []
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: hf.recv("never", timeout=0.02),
            lambda: hf.get_event("nobody", "never", timeout=0.02),
            lambda: hf.recv("never", timeout=0),
            lambda: hf.get_event("nobody", "never", timeout=0),
        ]
        for call in calls:
            try:
                await call()
            except TimeoutError as error:
                said.append(type(error).__name__)
        said.append(str(await hf.recv("never", timeout=0.01, default="default")))
        await hf.sleep(0.02)
        await hf.sleep(0)
        await hf.sleep_until(datetime(2020, 1, 1, tzinfo=UTC))
        return said

    rt = await processes.runtime(short, settings=quick())
    assert await rt.run(short()) == ["WaitTimeout"] * 4 + ["default"]

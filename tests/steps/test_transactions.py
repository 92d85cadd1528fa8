"""Transactions: the effect and the record are one commit [W2]."""

from __future__ import annotations

import asyncio

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Proxy
from tests.processes import Points, Processes, Waits
from tests.runtime.witness import PATIENCE, fence, quick

bodies: list[int] = []


@hf.transaction
async def book(connection: Connection, number: int) -> int:
    bodies.append(number)
    await connection.execute("insert into public.booked values ($1)", number)
    if number < 0:
        raise ValueError(number)
    return number


@hf.workflow
async def work(number: int) -> list[str]:
    said = []
    try:
        said.append(str(await book(number)))
    except ValueError as error:
        said.append(repr(error))
    await hf.recv("go on")
    return said


@pytest.fixture(autouse=True)
async def _table(database: Connection) -> None:
    bodies.clear()
    await database.execute("create table public.booked (number integer)")


async def booked(database: Connection) -> list[int]:
    return [row[0] for row in await database.fetch("select number from public.booked")]


async def test_w2_effect_and_record_once_over_two_lives(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(1), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(work, "one").result(PATIENCE) == ["1"]
    assert await booked(database) == [1]
    assert bodies == [1]


async def test_w2_what_it_raises_rolls_back_and_is_recorded(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(-1), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(work, "one").result(PATIENCE) == ["ValueError(-1)"]
    assert await booked(database) == []
    assert bodies == [-1]


@pytest.mark.parametrize("lost", ["request", "reply"])
async def test_w2_a_commit_whose_outcome_is_unknown_happens_once(
    processes: Processes, database: Connection, dsn: str, lost: str
) -> None:
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(work, dsn=proxy.dsn, settings=quick())
        fault = proxy.lose_reply("COMMIT;") if lost == "reply" else proxy.lose_request("COMMIT;")
        handle = await rt.start(work(1), id="one")
        await handle.send("go on", None)
        assert await handle.result(PATIENCE) == ["1"]
        assert fault.happened.is_set()
        assert await booked(database) == [1]
        assert len(bodies) == (1 if lost == "reply" else 2)
        await processes.leave(rt)


async def test_w2_w14_nothing_of_a_fenced_executor_lands(
    processes: Processes, database: Connection, points: Points
) -> None:
    """Fenced while the transaction is open: it rolls back, and the successor does it."""
    in_body, go = asyncio.Event(), asyncio.Event()

    @hf.transaction
    async def slow(connection: Connection, number: int) -> int:
        await connection.execute("insert into public.booked values ($1)", number)
        if not in_body.is_set():
            in_body.set()
            await go.wait()
            return -1
        return number

    @hf.workflow
    async def patient() -> int:
        return await slow(7)

    rt = await processes.runtime(patient, settings=quick(heartbeat=4))
    handle = await rt.start(patient(), id="one")
    await in_body.wait()
    await fence(database, rt)
    second = await processes.runtime(patient, settings=quick())
    assert await second.handle(patient, "one").result(PATIENCE) == 7
    go.set()
    async with asyncio.timeout(PATIENCE):
        while rt.executor.runs:
            await asyncio.sleep(0.005)
    assert await handle.result(PATIENCE) == 7
    assert await booked(database) == [7]


async def test_w2_a_deadlock_is_tried_again(processes: Processes, database: Connection) -> None:
    await database.execute("create table public.pair (id integer primary key, n integer)")
    await database.execute("insert into public.pair values (1, 0), (2, 0)")
    first_lock = {1: asyncio.Event(), 2: asyncio.Event()}

    @hf.transaction
    async def both(connection: Connection, one: int, other: int) -> int:
        bodies.append(one)
        await connection.execute("set local deadlock_timeout = '20ms'")
        await connection.execute("update public.pair set n = n + 1 where id = $1", one)
        first_lock[one].set()
        await first_lock[other].wait()
        await connection.execute("update public.pair set n = n + 1 where id = $1", other)
        return one

    @hf.workflow
    async def cross() -> list[int]:
        return list(await asyncio.gather(both(1, 2), both(2, 1)))

    rt = await processes.runtime(cross, settings=quick())
    assert await rt.run(cross()) == [1, 2]
    assert [row[0] for row in await database.fetch("select n from public.pair")] == [2, 2]
    assert len(bodies) == 3


async def test_w2_outside_a_workflow_and_in_a_step_it_says_where_it_runs(processes: Processes) -> None:
    with pytest.raises(hf.NotInWorkflow, match="book"):
        book(1)

    @hf.step
    async def inside() -> str:
        try:
            await book(1)
        except hf.NotInWorkflow as error:
            return str(error)
        return ""

    @hf.workflow
    async def ask() -> str:
        return await inside()

    rt = await processes.runtime(ask, settings=quick())
    assert "book" in await rt.run(ask())


async def test_w2_transactions_of_branches_are_each_once_and_in_the_journal(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def many() -> list[int]:
        return list(await asyncio.gather(*(book(number) for number in range(12))))

    rt = await processes.runtime(many, settings=quick())
    assert await rt.run(many(), id="one") == list(range(12))
    assert sorted(await booked(database)) == list(range(12))
    assert {found.kind for found in await rt.steps("one")} == {"transaction"}


async def test_w2_a_connection_that_is_lost_inside_the_body_is_no_failure(
    processes: Processes, database: Connection
) -> None:
    @hf.transaction
    async def unlucky(connection: Connection, number: int) -> int:
        bodies.append(number)
        await connection.execute("insert into public.booked values ($1)", number)
        if len(bodies) == 1:
            pid = await connection.fetchval("select pg_backend_pid()")
            await database.execute("select pg_terminate_backend($1, 5000)", pid)
            await connection.fetchval("select 1")
        return number

    @hf.workflow
    async def once() -> int:
        return await unlucky(5)

    rt = await processes.runtime(once, settings=quick())
    assert await rt.run(once()) == 5
    assert await booked(database) == [5]
    assert bodies == [5, 5]


async def test_w2_an_error_of_its_statements_is_its_own(processes: Processes, database: Connection) -> None:
    await database.execute("create unique index on public.booked (number)")

    @hf.workflow
    async def twice() -> str:
        await book(1)
        try:
            await book(1)
        except hf.RemoteError as error:
            return error.type_name
        return ""

    rt = await processes.runtime(twice, settings=quick())
    assert await rt.run(twice()) == "asyncpg.exceptions.UniqueViolationError"
    assert await booked(database) == [1]
    assert bodies == [1, 1]

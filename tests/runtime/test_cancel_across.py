"""Cancelling across processes: a family that runs in three of them, and all that can be on its way meanwhile
[W10].
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import holdfast as hf
from holdfast._run.run import Run
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, connect
from tests.runtime.cast import breeder, child, grandparent, tidy
from tests.runtime.troupe import Troupe, troupe
from tests.runtime.witness import PATIENCE, quick, state, until

FAMILY = ("one", "one/2", "one/2/2")
MILLISECONDS = 0.25
"""Seconds that half of the cancellations may take at most, from the call to the code, on a busy machine."""


@pytest.fixture
async def actors() -> AsyncIterator[Troupe]:
    async with troupe() as made:
        yield made


async def _begun(database: Connection, *ids: str) -> bool:
    """Has each of them said so, and does each wait now?"""
    rows = await database.fetch("select workflow_id from holdfast.events where key = 'begun'")
    return {row["workflow_id"] for row in rows} >= set(ids)


async def _no_one_active(database: Connection) -> bool:
    return not await database.fetchval("select exists (select from holdfast.workflows where status < 3)")


async def test_w10_reaches_a_family_over_three_processes_in_milliseconds(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    for part in ("grandparent", "parent", "child"):
        await actors.hire(dsn, part)
    client = await processes.client()
    reached: list[float] = []
    for number in range(10):
        root = f"{number}"
        family = [root, f"{root}/2", f"{root}/2/2"]
        handle = await client.start(grandparent(), id=root)
        await until(lambda family=family: _begun(database, *family), "begun")  # type: ignore[misc]
        asked = time.time()
        assert await client.cancel(root) is True
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
        for one in family:
            with pytest.raises(hf.WorkflowCancelled):
                await client.handle(one).result(PATIENCE)
            reached.append(await client.get_event(one, "cancelled at", type=float) - asked)
    owners = await database.fetchval("select count(distinct executor_id) from holdfast.workflows")
    assert owners == 3
    assert statistics.median(reached) < MILLISECONDS, reached


seen: list[str] = []


def _saw(error: BaseException | None) -> None:
    seen.append(type(error).__name__)


async def _awaited() -> None:
    await child()


async def _by_handle() -> None:
    handle = await hf.start(child())
    await handle.result()


async def _in_first() -> None:
    await hf.first(hf.recv("never"), child())


async def _in_each() -> None:
    async for outcome in hf.each(hf.WorkflowRef[[int], str]("child"), [1]):
        _saw(outcome.error)


@pytest.mark.parametrize("wait", [_awaited, _by_handle, _in_first, _in_each])
async def test_w10_a_parent_is_cancelled_even_if_it_hears_of_its_childs_end_first(
    processes: Processes, database: Connection, waits: Waits, wait: Callable[[], Awaitable[None]]
) -> None:
    """The bell for the family has reached the child's process, and not yet the parent's."""
    seen.clear()

    @hf.workflow
    async def watcher() -> None:
        try:
            await wait()
        except BaseException as error:
            _saw(error)
            raise
        seen.append("went on")

    @hf.workflow(name="child")
    async def waiting(*_: int) -> str:
        return await hf.recv("never", type=str)

    rt = await processes.runtime(watcher, settings=quick())
    await processes.runtime(waiting, settings=quick())
    client = await processes.client()
    handle = await rt.start(watcher(), id="one")
    await until(
        lambda: database.fetchval("select count(*) = 2 from holdfast.workflows where status = 2"), "both run"
    )
    child_id = await database.fetchval("select id from holdfast.workflows where parent_id = 'one'")
    await waits.on("message", child_id, "never")
    await waits.on("end", child_id)
    await database.execute(
        "update holdfast.workflows set cancelling = true, cancelled_with = 'one' where id = 'one'"
    )
    await client.cancel(child_id)
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert seen == ["CancelledError"]


async def test_w8_a_child_that_is_cancelled_alone_is_an_error_of_its_parent(
    processes: Processes, waits: Waits
) -> None:
    @hf.workflow
    async def watcher() -> str:
        try:
            return await child()
        except hf.WorkflowCancelled as error:
            return error.workflow_id

    rt = await processes.runtime(watcher, settings=quick())
    await processes.runtime(child, settings=quick())
    handle = await rt.start(watcher(), id="one")
    await waits.on("message", "one/1", "never")
    await rt.cancel("one/1")
    assert await handle.result(PATIENCE) == "one/1"


async def test_w10_a_child_that_is_started_at_that_moment_is_cancelled_too(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    await actors.hire(dsn, "breeder")
    await actors.hire(dsn, "child")
    client = await processes.client()
    for number in range(5):
        handle = await client.start(breeder(), id=str(number))
        await until(lambda number=number: _begun(database, f"{number}/3"), "children begun")  # type: ignore[misc]
        await client.cancel(handle.id)
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
    await until(lambda: _no_one_active(database), "every child cancelled")
    assert await _statuses(database) == {"CANCELLED"}


async def _statuses(database: Connection) -> set[str]:
    return {row["status"] for row in await database.fetch("select status from holdfast.workflow_list")}


@pytest.mark.parametrize("point", ["finish.before_commit", "finish.after_commit"])
async def test_w10_no_child_is_left_when_the_process_dies_while_its_parent_ends(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, point: str
) -> None:
    dying = await actors.hire(dsn, "tidy", point=point)
    client = await processes.client()
    handle = await client.start(tidy(), id="one")
    await until(lambda: _begun(database, "one"), "begun")
    await client.cancel("one")
    # The start was on its way when the family was cancelled.
    await database.execute(
        "insert into holdfast.workflows (id, name, status, parent_id, start_token, input, created_at) "
        "values ('child', 'child', 0, 'one', gen_random_uuid(), '[]', now())"
    )
    await handle.send("tidied", None)
    await dying.died()
    if point == "finish.before_commit":
        await actors.hire(dsn, "tidy")
    for one in ("one", "child"):
        with pytest.raises(hf.WorkflowCancelled):
            await client.handle(one).result(PATIENCE)


async def test_w10_what_nobody_runs_any_more_cleans_up_when_somebody_does(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    dead = await actors.hire(dsn, "family")
    client = await processes.client()
    handle = await client.start(grandparent(), id="one")
    await until(lambda: _begun(database, *FAMILY), "begun")
    await dead.kill()
    assert await client.cancel("one") is True
    found = await handle.status()
    assert (found.status, found.cancelling) == (hf.Status.PENDING, True)
    await actors.hire(dsn, "family")
    for one in FAMILY:
        with pytest.raises(hf.WorkflowCancelled):
            await client.handle(one).result(PATIENCE)
        assert await client.get_event(one, "cancelled at", timeout=PATIENCE)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_w10_what_is_being_taken_over_is_cancelled_by_whoever_takes_it(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, fault: signal.Signals
) -> None:
    victim = await actors.hire(dsn, "family", heartbeat=0.05, lease=0.6)
    client = await processes.client()
    for number in range(6):
        await client.start(child(), id=str(number))
    ids = [str(number) for number in range(6)]
    await until(lambda: _begun(database, *ids), "begun")
    victim.signal(fault)
    await actors.hire(dsn, "family", heartbeat=0.05)
    # One after another, so that they meet the taking over at different moments.
    for one in ids:
        assert await client.cancel(one) is True
        await asyncio.sleep(0.1)
    for one in ids:
        with pytest.raises(hf.WorkflowCancelled):
            await client.handle(one).result(PATIENCE)
        assert await client.get_event(one, "cancelled at", timeout=PATIENCE)
    if fault is signal.SIGSTOP:
        victim.signal(signal.SIGCONT)
    times = await database.fetch("select workflow_id from holdfast.events where key = 'cancelled at'")
    assert len(times) == 6


async def test_w10_what_is_parked_while_others_of_its_family_run_ends_with_them(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    first = await actors.hire(dsn, "parent")
    await actors.hire(dsn, "child")
    client = await processes.client()
    handle = await client.start(hf.WorkflowRef[[], str]("parent")(), id="one")
    await until(lambda: _begun(database, "one", "one/2"), "begun")
    await first.kill()

    @hf.workflow(name="parent")
    async def other_code() -> str:
        return str(await hf.now())

    await processes.runtime(other_code, settings=quick())
    await until(lambda: _parked(database), "parked")
    assert await client.cancel("one") is True
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one/2").result(PATIENCE)


async def _parked(database: Connection) -> bool:
    query = "select parked is not null and executor_id is null from holdfast.workflows where id = 'one'"
    return bool(await database.fetchval(query))


async def test_w10_asked_to_end_before_the_reply_to_its_start_has_come(
    processes: Processes, database: Connection, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is committed, another process cancels it, and only then does its own process hear of it."""
    rt = await processes.runtime(child, settings=quick())
    client = await processes.client()
    late: list[Callable[[], None]] = []
    launch = rt.executor.launch

    def hold(run: Run, data: bytes, remaining: float | None, *, cancelling: bool = False) -> None:
        late.append(lambda: launch(run, data, remaining, cancelling=cancelling))

    monkeypatch.setattr(rt.executor, "launch", hold)
    handle = await rt.start(child(), id="one")
    waits.forget()
    assert await client.cancel("one") is True
    executor = rt.executor.lease.executor
    await waits.on("executor", str(executor))
    late[0]()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert await state(database, "one") == "CANCELLED"


async def test_w10_a_child_whose_start_is_on_its_way_does_not_outlast_the_cancelling(
    processes: Processes, database: Connection, waits: Waits, dsn: str
) -> None:
    """Its parent cleans up for long; the child is cancelled now, not when the parent has ended."""

    @hf.workflow
    async def starts() -> None:
        try:
            await hf.recv("go on")
            await hf.start(child(), id="child")
            await hf.recv("never")
        finally:
            await hf.recv("tidied")

    rt = await processes.runtime(starts, child, settings=quick())
    client = await processes.client()
    handle = await rt.start(starts(), id="one")
    await waits.on("message", "one", "go on")
    blocker = await _lock_starts(database)
    await handle.send("go on", None)
    await until(lambda: _blocked(processes), "the start on its way")
    # Asked for here, as the request of another process arrives here.
    rt.executor.runs["one"].cancel()
    await blocker()
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("child").result(PATIENCE)
    assert await state(database, "one") == "PENDING"
    await handle.send("tidied", None)
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)


async def _lock_starts(database: Connection) -> Callable[[], Awaitable[None]]:
    transaction = database.transaction()
    await transaction.start()
    await database.execute(
        "insert into holdfast.workflows (id, name, status, start_token, input, created_at) "
        "values ('child', 'x', 0, gen_random_uuid(), '[]', now())"
    )
    return transaction.rollback


async def _blocked(processes: Processes) -> bool:

    connection = await connect(processes.dsn)
    try:
        return bool(
            await connection.fetchval(
                "select exists (select from pg_stat_activity where datname = current_database() "
                "and wait_event_type = 'Lock' and query like '%commit_batch%')"
            )
        )
    finally:
        await connection.close()

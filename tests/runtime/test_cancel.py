"""Cancelling: it reaches the code wherever it waits, lets it clean up, and is recorded [W10]."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Processes, Waits, within
from tests.runtime.witness import PATIENCE, Signals, held, journal, quick, state, until

seen: list[str] = []
entered: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _nothing_was_seen() -> None:
    seen.clear()
    entered.clear()


@hf.step
async def hang() -> None:
    entered.setdefault("step", asyncio.Event()).set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen.append("step cancelled")
        raise


@hf.step
async def clean(label: str) -> str:
    seen.append(f"cleaned {label}")
    return label


@hf.workflow
async def sleeper() -> None:
    try:
        await hf.recv("never")
    except asyncio.CancelledError:
        seen.append("child cancelled")
        raise


PLACES: dict[str, Callable[[], Awaitable[object]]] = {
    "recv": lambda: hf.recv("never"),
    "recv with a timeout": lambda: hf.recv("never", timeout=600),
    "sleep": lambda: hf.sleep(600),
    "get_event": lambda: hf.get_event("nobody", "never"),
    "run": lambda: sleeper(),
    "result": lambda: hf.current() and _result_of_a_child(),
    "step": lambda: hang(),
    "plain await": lambda: _wait_plainly(),
    "gather": lambda: asyncio.gather(hf.recv("never"), hf.sleep(600)),
}
KINDS = {
    "recv": {"recv"},
    "recv with a timeout": {"recv"},
    "sleep": {"sleep"},
    "get_event": {"get_event"},
    "run": {"run"},
    "result": {"result"},
    "step": {"step"},
    "plain await": set(),
    "gather": {"recv", "sleep"},
}


async def _result_of_a_child() -> None:
    handle = await hf.start(sleeper())
    await handle.result()


async def _wait_plainly() -> None:
    await asyncio.Event().wait()


@hf.workflow
async def stay(place: str) -> str:
    try:
        await hf.set_event("begun", place)
        entered.setdefault("place", asyncio.Event()).set()
        await PLACES[place]()
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    finally:
        await clean("one")
        await clean("two")
    return "not cancelled"


async def interrupted(database: Connection, workflow_id: str) -> set[str]:
    """Kinds of the calls that are recorded as interrupted."""
    query = "select kind from holdfast.step_list where workflow_id = $1 and outcome = 'interrupted'"
    return {row["kind"] for row in await database.fetch(query, workflow_id)}


@pytest.mark.parametrize("by", ["handle", "another process"])
@pytest.mark.parametrize("place", PLACES)
async def test_w10_reaches_the_code_wherever_it_waits(
    processes: Processes, database: Connection, place: str, by: str
) -> None:
    rt = await processes.runtime(stay, sleeper, settings=quick())
    canceller = rt if by == "handle" else await processes.client()
    handle = await rt.start(stay(place), id="one")
    await within(PATIENCE, entered.setdefault("place", asyncio.Event()).wait())
    begun = time.monotonic()
    assert await canceller.cancel("one") is True
    with pytest.raises(hf.WorkflowCancelled) as raised:
        await handle.result(PATIENCE)
    assert time.monotonic() - begun < 2
    assert raised.value.__cause__ is None
    assert await state(database, "one") == "CANCELLED"
    # The child whose result it is to wait for may still have been on its way.
    expected = [KINDS[place], {"start"}] if place == "result" else [KINDS[place]]
    assert await interrupted(database, "one") in expected
    assert [found for found in seen if found.startswith("clean")] == ["cleaned one", "cleaned two"]
    assert "cancelled" in seen
    if place in ("run", "result"):
        await until(lambda: _is(database, "CANCELLED"), "the child cancelled")
    assert await canceller.cancel("one") is False


async def _is(database: Connection, wanted: str) -> bool:
    rows = await database.fetch("select status from holdfast.workflow_list")
    return {row["status"] for row in rows} == {wanted}


async def test_w10_while_it_cleans_up_it_is_pending_and_cancelling(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> None:
        try:
            await hf.recv("never")
        finally:
            await hf.recv("tidied")

    rt = await processes.runtime(tidy, settings=quick())
    handle = await rt.start(tidy(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    await waits.on("message", "one", "tidied")
    found = await handle.status()
    assert (found.status, found.cancelling) == (hf.Status.PENDING, True)
    assert await interrupted(database, "one") == {"recv"}
    await handle.send("tidied", None)
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    found = await handle.status()
    assert (found.status, found.cancelling) == (hf.Status.CANCELLED, False)


async def test_w10_a_replay_is_cancelled_at_the_same_place_and_goes_on_cleaning(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> None:
        try:
            await clean("before")
            await asyncio.gather(hf.recv("never"), hf.sleep(600))
        except asyncio.CancelledError:
            seen.append("cancelled")
            await clean("first")
            await hf.recv("tidied")
            await clean("second")
            raise

    rt = await processes.runtime(tidy, settings=quick())
    handle = await rt.start(tidy(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    await waits.on("message", "one", "tidied")
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(tidy, settings=quick())
    await waits.on("message", "one", "tidied")
    assert (await rt.status("one")).cancelling
    await rt.send("one", None, "tidied")
    with pytest.raises(hf.WorkflowCancelled):
        await rt.handle("one").result(PATIENCE)
    cleaned = ["cleaned before", "cancelled", "cleaned first", "cancelled", "cleaned second"]
    assert seen == cleaned
    assert await interrupted(database, "one") == {"recv", "sleep"}


async def test_w10_m8_a_message_that_comes_while_its_recv_is_cancelled_is_there_for_the_clean_up(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> None:
        try:
            await hf.recv("word")
        except asyncio.CancelledError:
            seen.append(str(await hf.recv("word", timeout=60)))
            raise

    rt = await processes.runtime(tidy, settings=quick())
    handle = await rt.start(tidy(), id="one")
    await waits.on("message", "one", "word")
    client = await processes.client()
    async with held(dsn, "messages"):
        sending = asyncio.create_task(client.send("one", "hello", "word"))
        await handle.cancel()
        await until(lambda: _cancelled_here(rt, "one"), "cancelled where it runs")
    await sending
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert seen == ["hello"]


async def test_w10_clean_up_that_takes_too_long_is_cut_off(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def untidy() -> None:
        try:
            await hf.recv("never")
        finally:
            await hf.recv("tidied")
            seen.append("too late")

    rt = await processes.runtime(untidy, settings=quick(cleanup_time=0.1))
    handle = await rt.start(untidy(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert seen == []
    assert rt.executor.runs == {}


async def test_w10_swallowing_it_does_not_save_the_workflow(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def stubborn() -> str:
        try:
            await hf.recv("never")
        except asyncio.CancelledError:
            pass
        await clean("after")
        return "saved"

    rt = await processes.runtime(stubborn, settings=quick())
    handle = await rt.start(stubborn(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert seen == ["cleaned after"]


async def test_w10_what_nobody_runs_is_cancelled_at_once(processes: Processes, database: Connection) -> None:
    client = await processes.client()
    handle = await client.start(sleeper(), id="one")
    assert await client.cancel("one") is True
    assert await state(database, "one") == "CANCELLED"
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    await processes.runtime(sleeper, settings=quick())
    assert await state(database, "one") == "CANCELLED"
    assert seen == []


async def test_w10_what_has_ended_stays_as_it_is(processes: Processes, database: Connection) -> None:
    @hf.workflow
    async def quickly() -> str:
        return "done"

    rt = await processes.runtime(quickly, settings=quick())
    handle = await rt.start(quickly(), id="one")
    assert await handle.result(PATIENCE) == "done"
    assert await handle.cancel() is False
    assert await handle.result() == "done"
    with pytest.raises(hf.WorkflowNotFound):
        await rt.cancel("nobody")


async def test_w10_every_task_of_the_workflow_and_every_child_is_cancelled(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def grandparent() -> None:
        async def branch(number: int) -> None:
            try:
                await hf.recv(f"never {number}")
            except asyncio.CancelledError:
                seen.append(f"branch {number}")
                raise

        await hf.start(middle())
        await asyncio.gather(*(branch(number) for number in range(3)))

    @hf.workflow
    async def middle() -> None:
        await hf.start(sleeper())
        await hf.recv("never")

    rt = await processes.runtime(grandparent, middle, sleeper, settings=quick())
    handle = await rt.start(grandparent(), id="one")
    await waits.on("message", "one", "never 2")
    await waits.on("message", "one/1", "never")
    await waits.on("message", "one/1/1", "never")
    await handle.cancel()
    for workflow_id in ("one", "one/1", "one/1/1"):
        with pytest.raises(hf.WorkflowCancelled):
            await rt.handle(workflow_id).result(PATIENCE)
    assert sorted(seen) == ["branch 0", "branch 1", "branch 2", "child cancelled"]


async def test_w10_cancelled_while_it_replays_or_while_nobody_runs_it(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> None:
        for number in range(20):
            await hf.set_event("n", number)
        try:
            await hf.recv("never")
        except asyncio.CancelledError:
            seen.append("cancelled in recv")
            raise

    rt = await processes.runtime(tidy, settings=quick())
    await rt.start(tidy(), id="one")
    await waits.on("message", "one", "never")
    recorded = await journal(database, "one")
    await processes.leave(rt)
    client = await processes.client()
    await client.cancel("one")
    rt = await processes.runtime(tidy, settings=quick())
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one").result(PATIENCE)
    assert seen == ["cancelled in recv"], "not before the replay has come to where it was"
    assert await journal(database, "one") == [*recorded, ("21", "recv", "never")]


async def test_w10_children_that_nobody_runs_are_cancelled_with_their_parent(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    elsewhere = hf.WorkflowRef[[], None]("sleeper")

    @hf.workflow
    async def lonely() -> None:
        await elsewhere()

    rt = await processes.runtime(lonely, settings=quick())
    handle = await rt.start(lonely(), id="one")
    await waits.on("end", "one/1")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert await state(database, "one/1") == "CANCELLED"


async def test_w10_a_parent_sees_that_its_child_was_cancelled(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def ask() -> str:
        try:
            await sleeper()
        except hf.WorkflowCancelled as error:
            return error.workflow_id
        return ""

    rt = await processes.runtime(ask, sleeper, settings=quick())
    handle = await rt.start(ask(), id="one")
    await waits.on("message", "one/1", "never")
    await rt.cancel("one/1")
    assert await handle.result(PATIENCE) == "one/1"


@pytest.mark.parametrize(
    "given", ["where it is defined", "where it is started", "where another process starts it"]
)
async def test_w10_its_own_timeout_ends_it_the_same_way(
    processes: Processes, database: Connection, given: str
) -> None:
    defined = 0.05 if given == "where it is defined" else None

    @hf.workflow(timeout=defined)
    async def slow() -> None:
        try:
            await sleeper()
        finally:
            await clean("up")

    rt = await processes.runtime(slow, sleeper, settings=quick())
    starter = await processes.client() if given == "where another process starts it" else rt
    handle = await starter.start(slow(), id="one", timeout=None if defined else 0.05)
    with pytest.raises(hf.WorkflowCancelled) as raised:
        await handle.result(PATIENCE)
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert "cleaned up" in seen
    await until(lambda: _is(database, "CANCELLED"), "the child cancelled")


async def test_w9_w10_its_own_timeout_counts_on_while_nobody_runs_it(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    @hf.workflow(timeout=3600)
    async def slow() -> None:
        await hf.recv("never")

    rt = await processes.runtime(slow, settings=quick())
    await rt.start(slow(), id="one")
    await waits.on("message", "one", "never")
    await processes.leave(rt)
    async with DatabaseClock(dsn) as clock:
        await clock.advance(3599)
        waits.forget()
        rt = await processes.runtime(slow, settings=quick())
        await waits.on("message", "one", "never")
        assert await state(database, "one") == "PENDING"
        await processes.leave(rt)
        await clock.advance(2)
        rt = await processes.runtime(slow, settings=quick())
        with pytest.raises(hf.WorkflowCancelled) as raised:
            await rt.handle("one").result(PATIENCE)
        assert isinstance(raised.value.__cause__, TimeoutError)
        await processes.leave(rt)


async def test_w10_a_hundred_at_once(processes: Processes, signals: Signals, waits: Waits) -> None:
    rt = await processes.runtime(sleeper, settings=quick())
    client = await processes.client()
    handles = [await rt.start(sleeper(), id=str(number)) for number in range(100)]
    for handle in handles:
        await waits.on("message", handle.id, "never")
    assert await asyncio.gather(*(client.cancel(handle.id) for handle in handles)) == [True] * 100
    results = await asyncio.gather(*(handle.result(PATIENCE) for handle in handles), return_exceptions=True)
    assert {type(result) for result in results} == {hf.WorkflowCancelled}
    assert len(seen) == 100


async def _cancelled_here(rt: hf.Runtime, workflow_id: str) -> bool:
    return rt.executor.runs[workflow_id].cancelling

"""Leaving a runtime is not cancelling: nothing of what the code makes of it is recorded [W11]."""

from __future__ import annotations

import asyncio
import time

import pytest

import holdfast as hf
from holdfast._run.claiming import Claiming
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, connect, within
from tests.runtime.witness import PATIENCE, Signals, quick, snapshot, state, until

seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_was_seen() -> None:
    seen.clear()


@hf.step
async def say(label: str) -> str:
    return label


@hf.workflow
async def swallows_in_gather() -> list[str]:
    results = await asyncio.gather(hf.recv("a"), hf.recv("b"), say("c"), return_exceptions=True)
    said = [str(result) for result in results]
    seen.append("went on")
    await hf.set_event("said", said)
    return said


@hf.workflow
async def swallows_everything() -> list[str]:
    said = []
    for topic in "ab":
        try:
            said.append(str(await hf.recv(topic)))
        except BaseException as error:
            seen.append(type(error).__name__)
            said.append("swallowed")
    seen.append("went on")
    return [*said, "c"]


@hf.workflow
async def cleans_up() -> list[str]:
    try:
        return [str(await hf.recv("a")), str(await hf.recv("b")), "c"]
    finally:
        seen.append("finally")
        await hf.set_event("cleaned", True)
        await hf.send(hf.current().workflow_id, "too late", "a")


@hf.workflow
async def waits_plainly() -> list[str]:
    async def both() -> list[str]:
        return [str(await hf.recv("a")), str(await hf.recv("b")), "c"]

    task = asyncio.create_task(both())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        seen.append("CancelledError")
    return await task


SHAPES = [swallows_in_gather, swallows_everything, cleans_up, waits_plainly]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_w11_nothing_is_recorded_once_leaving_has_begun(
    processes: Processes, database: Connection, waits: Waits, shape: hf.Workflow[[], list[str]]
) -> None:
    rt = await processes.runtime(shape, settings=quick())
    await rt.start(shape(), id="one")
    await waits.on("message", "one", "a")
    if shape is swallows_in_gather:
        await _recorded(database, 1)
    before = await snapshot(database)
    await processes.leave(rt)
    assert await snapshot(database) == before
    assert before["workflows"][0][2] == "PENDING"
    assert await database.fetchval("select executor_id from holdfast.workflows") is None, "free at once"

    rt = await processes.runtime(shape, settings=quick())
    await rt.send("one", "a", "a")
    await rt.send("one", "b", "b")
    assert await rt.handle(shape, "one").result(PATIENCE) == ["a", "b", "c"]


async def _recorded(database: Connection, calls: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await database.fetchval("select count(*) from holdfast.steps") < calls:
            await asyncio.sleep(0.005)


async def test_w11_what_a_durable_call_raises_is_no_exception_and_no_cancellation(
    processes: Processes, waits: Waits
) -> None:
    caught: list[BaseException] = []

    @hf.workflow
    async def curious() -> None:
        for _ in range(3):
            try:
                await hf.recv("never")
            except BaseException as error:
                caught.append(error)

    rt = await processes.runtime(curious, settings=quick())
    await rt.start(curious(), id="one")
    await waits.on("message", "one", "never")
    await processes.leave(rt)
    assert [type(error) for error in caught] == [hf.WorkflowStopped] * 3
    assert not issubclass(hf.WorkflowStopped, (Exception, asyncio.CancelledError))


async def test_w11_a_step_that_runs_sees_a_cancellation_and_runs_again(
    processes: Processes, database: Connection
) -> None:
    hangs = asyncio.Event()

    @hf.step
    async def hang() -> str:
        if "let go" in seen:
            return "let go"
        hangs.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise
        return "never"

    @hf.workflow
    async def work() -> str:
        return await hang()

    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(), id="one")
    await within(PATIENCE, hangs.wait())
    await processes.leave(rt)
    assert seen == ["CancelledError"]
    assert await state(database, "one") == "PENDING"
    seen.append("let go")
    rt = await processes.runtime(work, settings=quick())
    assert await rt.handle(work, "one").result(PATIENCE) == "let go"


async def test_w11_tasks_left_over_when_the_function_returns_record_nothing(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    cancelled = asyncio.Event()

    @hf.workflow
    async def careless() -> str:
        async def left_over() -> None:
            try:
                await hf.recv("never")
            except BaseException:
                cancelled.set()
                await hf.set_event("too late", True)

        task = asyncio.create_task(left_over())
        await hf.recv("go on")
        return task.get_name() and "done"

    rt = await processes.runtime(careless, settings=quick())
    handle = await rt.start(careless(), id="one")
    await waits.on("message", "one", "never")
    await handle.send("go on", None)
    assert await handle.result(PATIENCE) == "done"
    await asyncio.wait_for(cancelled.wait(), PATIENCE)
    assert [found.kind for found in await rt.steps("one")] == ["recv"]
    assert await rt.get_events("one") == {}


async def test_w11_leaving_waits_for_no_workflow(processes: Processes, database: Connection) -> None:
    let_go, waits = asyncio.Event(), asyncio.Event()

    @hf.step
    async def deaf() -> None:
        waits.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                seen.append("ignored")

    @hf.workflow
    async def work() -> str:
        if seen:
            return "later"
        await deaf()
        return "too late"

    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(), id="one")
    await within(PATIENCE, waits.wait())
    begun = time.monotonic()
    leaving = asyncio.create_task(processes.leave(rt))
    # The fence falls before the deaf one has let go.
    async with asyncio.timeout(PATIENCE):
        while await database.fetchval("select count(*) from holdfast.executors where fenced_at is null"):
            await asyncio.sleep(0.01)
    assert time.monotonic() - begun < 3
    let_go.set()
    await leaving
    assert await state(database, "one") == "PENDING"
    rt = await processes.runtime(work, settings=quick())
    assert await rt.handle(work, "one").result(PATIENCE) == "later"


async def test_w11_drain_lets_what_runs_come_to_its_end(processes: Processes, signals: Signals) -> None:
    go = asyncio.Event()

    @hf.step
    async def nearly_done() -> str:
        await hf.set_event("begun", True)
        await go.wait()
        return "done"

    @hf.workflow
    async def work() -> str:
        return await nearly_done()

    rt = await processes.runtime(work, settings=quick(drain=PATIENCE))
    handle = await rt.start(work(), id="one")
    await handle.get("begun", PATIENCE)
    leaving = asyncio.create_task(processes.leave(rt))
    await asyncio.sleep(0)
    go.set()
    await leaving
    assert signals.times("workflow.finished", workflow_id="one") == 1
    client = await processes.client()
    assert await client.handle(work, "one").result(0) == "done"


async def test_w11_a_cancelled_workflow_that_is_left_goes_on_cleaning_later(
    processes: Processes, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> None:
        try:
            await hf.recv("never")
        finally:
            await hf.recv("tidied")
            seen.append("tidied")

    rt = await processes.runtime(tidy, settings=quick())
    await rt.start(tidy(), id="one")
    await waits.on("message", "one", "never")
    await rt.cancel("one")
    await waits.on("message", "one", "tidied")
    await processes.leave(rt)
    rt = await processes.runtime(tidy, settings=quick())
    await rt.send("one", None, "tidied")
    with pytest.raises(hf.WorkflowCancelled):
        await rt.handle("one").result(PATIENCE)
    assert seen == ["tidied"]


async def test_w11_an_internal_failure_is_no_outcome_of_the_workflows(
    processes: Processes,
    database: Connection,
    waits: Waits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug of the library")

    rt = hf.Runtime(processes.dsn, workflows=[cleans_up], settings=quick())
    await rt.__aenter__()
    await rt.start(cleans_up(), id="one")
    await waits.on("message", "one", "a")
    before = await snapshot(database)
    with monkeypatch.context() as patched:
        patched.setattr(Claiming, "_begin", fail)
        client = await processes.client()
        await client.start(cleans_up(), id="two")  # somebody has to look for it
        async with asyncio.timeout(PATIENCE):
            while "internal error" not in caplog.text:
                await asyncio.sleep(0.005)
        with pytest.raises(hf.NotRunning):
            await rt.send("one", "b", "b")
        with pytest.raises(ExceptionGroup):
            await rt.__aexit__(None, None, None)
    after = await snapshot(database)
    assert after["workflows"][0] == before["workflows"][0]
    assert after["journal"] == before["journal"]
    again = await processes.runtime(cleans_up, settings=quick())
    for workflow_id in ("one", "two"):
        await again.send(workflow_id, "a", "a")
        await again.send(workflow_id, "b", "b")
        assert await again.handle(cleans_up, workflow_id).result(PATIENCE) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [hf.Client, hf.Runtime])
async def test_what_cannot_be_entered_leaves_no_connection(empty_dsn: str, kind: type[hf.Client]) -> None:
    database = await connect(empty_dsn)

    async def alone() -> bool:
        others = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        return not await database.fetch(others)

    tried = kind(empty_dsn, migrate=False)
    with pytest.raises(hf.SchemaMissing):
        await tried.__aenter__()
    await until(alone, "every connection closed")
    await database.close()

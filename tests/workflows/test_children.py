"""Children: their ids, their one start, and their recorded results [W8]."""

from __future__ import annotations

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, journal, quick

begun: list[str] = []


@hf.workflow
async def child(value: int) -> int:
    begun.append(hf.current().workflow_id)
    if value < 0:
        raise ValueError(value)
    return value + 1


@hf.workflow
async def parent(value: int) -> list[int]:
    awaited = await child(value)
    handle = await hf.start(child(value + 10))
    named = await hf.start(child(value + 20), id="named")
    results = [awaited, await handle.result(), await named.result()]
    await hf.recv("go on")
    return results


@pytest.fixture(autouse=True)
def _nobody_has_begun() -> None:
    begun.clear()


async def test_w8_ids_records_and_results(processes: Processes, database: Connection, waits: Waits) -> None:
    rt = await processes.runtime(parent, child, settings=quick())
    handle = await rt.start(parent(1), id="p")
    await waits.on("message", "p", "go on")
    assert begun == ["p/1", "p/2", "named"]
    assert await journal(database, "p") == [
        ("1", "run", "child"),
        ("2", "start", "child"),
        ("3", "start", "child"),
        ("4", "result", ""),
        ("5", "result", ""),
    ]
    parents = await database.fetch("select id, parent_id from holdfast.workflows where parent_id is not null")
    assert {row["id"]: row["parent_id"] for row in parents} == dict.fromkeys(begun, "p")
    # On a replay the results come from the journal: the children's own rows are not asked.
    await processes.leave(rt)
    await database.execute("update holdfast.workflows set output = '0', status = 4 where parent_id = 'p'")
    again = await processes.runtime(parent, child, settings=quick())
    await again.send("p", None, "go on")
    assert await again.handle(parent, "p").result(PATIENCE) == [2, 12, 22]
    assert len(begun) == 3
    assert handle.id == "p"


async def test_w8_the_exception_of_a_child_is_raised_as_itself_or_as_a_failure(processes: Processes) -> None:
    @hf.workflow
    async def ask() -> list[str]:
        caught = []
        try:
            await child(-1)
        except ValueError as error:
            caught.append(repr(error))
        handle = await hf.start(child(-2))
        try:
            await handle.result()
        except hf.WorkflowFailed as error:
            caught.append(repr(error.__cause__))
        return caught

    rt = await processes.runtime(ask, child, settings=quick())
    assert await rt.run(ask()) == ["ValueError(-1)", "ValueError(-2)"]


async def test_w8_a_child_whose_id_is_taken_is_a_recorded_conflict(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def ask() -> list[str]:
        caught = []
        try:
            await child(1)
        except hf.WorkflowConflict as error:
            caught.append(error.workflow_id)
        try:
            await hf.start(child(1), id="taken")
        except hf.WorkflowConflict as error:
            caught.append(error.workflow_id)
        await hf.recv("go on")
        return caught

    @hf.workflow
    async def stranger() -> None:
        pass

    rt = await processes.runtime(ask, child, stranger, settings=quick())
    await rt.run(child(5), id="ask/1")  # the right name, but not a child of this parent
    await rt.run(stranger(), id="taken")
    await rt.start(ask(), id="ask")
    await waits.on("message", "ask", "go on")
    await processes.leave(rt)
    await database.execute("delete from holdfast.workflows where id in ('taken', 'ask/1')")
    rt = await processes.runtime(ask, child, stranger, settings=quick())
    await rt.send("ask", None, "go on")
    assert await rt.handle(ask, "ask").result(PATIENCE) == ["ask/1", "taken"]


async def test_w8_waiting_for_a_child_no_longer_than_a_timeout_is_recorded(
    processes: Processes, waits: Waits
) -> None:
    @hf.workflow
    async def slow() -> str:
        return str(await hf.recv("word"))

    @hf.workflow
    async def ask() -> list[str]:
        handle = await hf.start(slow(), id="slow")
        said = []
        try:
            await handle.result(timeout=0.01)
        except hf.WaitTimeout:
            said.append("late")
        await hf.recv("go on")
        return [*said, await handle.result()]

    rt = await processes.runtime(ask, slow, settings=quick())
    await rt.start(ask(), id="ask")
    await waits.on("message", "ask", "go on")
    await rt.send("slow", "hello", "word")
    await rt.handle(slow, "slow").result(PATIENCE)
    await processes.leave(rt)
    rt = await processes.runtime(ask, slow, settings=quick())
    await rt.send("ask", None, "go on")
    assert await rt.handle(ask, "ask").result(PATIENCE) == ["late", "hello"]


async def test_w8_a_child_of_another_process_by_reference(processes: Processes) -> None:
    there = hf.WorkflowRef[[int], int]("child")

    @hf.workflow
    async def ask() -> list[int]:
        handle = await hf.start(there(10))
        return [await there(1), await handle.result()]

    rt = await processes.runtime(ask, settings=quick())
    await processes.runtime(child, settings=quick())
    assert await rt.run(ask()) == [2, 11]

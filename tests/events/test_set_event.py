"""Publishing: revisions without holes, once from a workflow, readable from anywhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Fault, Proxy
from tests.processes import Points, Processes, Waits, rows, within

STATE = hf.Event[Any]("state")
GO = hf.Topic[None]("go")


@hf.workflow
async def publisher(count: int) -> str:
    for number in range(count):
        await STATE.set(number)
    await GO.recv()
    return "done"


async def revisions(database: Connection) -> list[tuple[int, bytes]]:
    found = await database.fetch("select revision, payload from holdfast.events order by key, revision")
    return [(row[0], bytes(row[1])) for row in found]


async def test_e1_a_reader_gets_the_latest_value(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(publisher)
    handle = await rt.start(publisher(3))
    await handle.send(GO, None)
    await handle.result()
    assert await handle.get(STATE) == 2
    assert await rt.get_event(handle.id, "state", type=int) == 2
    assert await revisions(database) == [(1, b"0"), (2, b"1"), (3, b"2")]
    assert await rt.get_events(handle.id) == {"state": 2}
    assert await rt.get_events(handle.id, history=True) == {"state": [(1, 0), (2, 1), (3, 2)]}


async def test_get_events_of_nobody_and_of_one_without(processes: Processes) -> None:
    rt = await processes.runtime(publisher)
    with pytest.raises(hf.WorkflowNotFound):
        await rt.get_events("nobody")
    handle = await rt.start(publisher(0))
    assert await rt.get_events(handle.id) == {}


async def test_e1_a_replayed_set_does_no_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(publisher)
    await first.start(publisher(3), id="w")
    await waits.on("message", "w", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "events")

    waits.forget()
    second = await processes.runtime(publisher)
    await waits.on("message", "w", "go")
    assert second.statistics().writer.records == 1  # the recv that waits
    assert points.passed["set.before_commit"] == 3
    assert await rows(database, "steps", "events") == before
    await second.send("w", None, GO)
    assert await second.handle("w").result() == "done"
    assert await rows(database, "events") == {"events": before["events"]}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_e1_a_crash_at_the_commit_of_a_set_neither_loses_nor_doubles(
    processes: Processes, database: Connection, points: Points, when: str
) -> None:
    first = await processes.runtime(publisher)
    killed = points.kill(first, "set.before_commit", when)
    await first.start(publisher(2), id="w")
    await within(5, killed.wait())
    await processes.leave(first)
    assert await revisions(database) == ([(1, b"0")] if when == "after" else [])
    second = await processes.runtime(publisher)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == "done"
    assert await revisions(database) == [(1, b"0"), (2, b"1")]


async def test_e1_a_reader_in_another_process_is_woken_by_notification(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(waits_then_sets), await processes.client()
    handle = await rt.start(waits_then_sets(), id="w")
    got = asyncio.create_task(client.get_event("w", STATE))
    await waits.on("event", "w", "state")
    await handle.send(GO, None)
    assert await within(2, got) == "set"
    looks = client.statistics().lookups
    assert looks.looks == 2  # before it waited, and when the bell rang
    assert client.statistics().listener.bells >= 1


@hf.workflow
async def waits_then_sets() -> None:
    await GO.recv()
    await STATE.set("set")
    await GO.recv()


async def test_n5_a_reader_whose_listener_is_cut_before_the_set_is_woken(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt, client = await processes.runtime(waits_then_sets), await processes.client()
    handle = await rt.start(waits_then_sets(), id="w")
    got = asyncio.create_task(client.get_event("w", STATE))
    await waits.on("event", "w", "state")
    async with processes.unheard(database):
        await handle.send(GO, None)
        await waits.on("message", "w", "go", times=2)
    assert await within(2, got) == "set"
    assert client.statistics().lookups.looks <= 4


@hf.step
async def set_in_step() -> None:
    await STATE.set("step")


@hf.workflow
async def sets_twice() -> None:
    await STATE.set("workflow")
    await set_in_step()


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
@pytest.mark.parametrize("before", ["set.before_commit", "set.after_commit"], ids=["workflow", "step"])
async def test_e1_a_lost_connection_never_doubles_a_revision(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str, before: str
) -> None:
    lost: list[Fault] = []
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(sets_twice, dsn=proxy.dsn)
        points.at(before, lambda: lost.append(getattr(proxy, part)("commit_batch")))
        await rt.run(sets_twice())
        assert lost[0].happened.is_set()
        await processes.leave(rt)
    assert await revisions(database) == [(1, b'"workflow"'), (2, b'"step"')]


@hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
async def set_and_fail() -> None:
    await STATE.set(hf.current().attempt)
    if hf.current().attempt < 3:
        raise ValueError("again")


@hf.workflow
async def tries() -> None:
    await set_and_fail()
    await STATE.set("last")


async def test_e1_a_step_sets_at_least_once(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(tries)
    await rt.run(tries())
    assert await revisions(database) == [(1, b"1"), (2, b"2"), (3, b"3"), (4, b'"last"')]


@hf.workflow
async def hundred() -> None:
    async def branch(number: int) -> None:
        await STATE.set(number)
        await hf.set_event(f"own {number}", number)

    await asyncio.gather(*(branch(number) for number in range(100)))


async def test_e1_from_100_branches_at_once(processes: Processes) -> None:
    rt = await processes.runtime(hundred)
    handle = await rt.start(hundred())
    await handle.result()
    found = await rt.get_events(handle.id, history=True)
    assert found.pop("state") == [(number + 1, number) for number in range(100)]
    assert found == {f"own {number}": [(1, number)] for number in range(100)}
    steps = {step.step_id for step in await rt.steps(handle.id)}
    assert steps == {f"{branch}.{call}" for branch in range(1, 101) for call in (1, 2)}


async def test_e1_values_of_one_workflow_are_not_those_of_another(processes: Processes) -> None:
    rt = await processes.runtime(publisher)
    handles = [await rt.start(publisher(count)) for count in (1, 2, 3)]
    assert [await within(5, latest(handle, 2)) for handle in handles[2:]] == [2]
    assert await handles[0].get(STATE) == 0


async def latest(handle: hf.Handle[Any], wanted: int) -> int:
    """Watches the state until it is what is wanted."""
    async for value in handle.watch(STATE):
        if value == wanted:
            break
    return wanted


async def test_e4_none_is_a_value(processes: Processes) -> None:
    rt = await processes.runtime(sets_none)
    handle = await rt.start(sets_none())
    assert await handle.get(STATE, default="nothing") is None
    assert await handle.result() == [None, None]
    assert await rt.get_events(handle.id) == {"state": None}


@hf.workflow
async def sets_none() -> list[Any]:
    await STATE.set(None)
    me = hf.current().workflow_id
    return [await STATE.get(me, timeout=60, default="nothing"), await STATE.get(me)]


async def test_a_set_outside_a_workflow_says_so() -> None:
    with pytest.raises(hf.NotInWorkflow, match="only a workflow publishes events"):
        STATE.set(1)

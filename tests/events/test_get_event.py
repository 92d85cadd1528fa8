"""Awaiting an event: at once if it is there, else until it comes or cannot come any more."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from holdfast.testing.faults import Proxy
from tests.processes import Points, Processes, Waits, rows, settled, within

STATE = hf.Event[Any]("state")
GO = hf.Topic[None]("go")
ELSEWHERE = hf.WorkflowRef[[], None]("elsewhere")


@hf.workflow
async def setter(value: str) -> None:
    await STATE.set(value)


@hf.workflow
async def waits_then_sets() -> None:
    await GO.recv()
    await STATE.set("set")
    await GO.recv()


@hf.workflow
async def ends_without() -> None:
    await GO.recv()


@hf.workflow
async def reader(of: str, timeout: float | None) -> str:
    try:
        return f"got {await STATE.get(of, timeout=timeout)}"
    except (hf.WorkflowError, hf.WaitTimeout) as error:
        return f"{type(error).__name__}"


@hf.workflow
async def reader_then_go(of: str, timeout: float | None) -> list[Any]:
    found = await STATE.get(of, timeout=timeout, default="nothing")
    await GO.recv()
    return [found, await STATE.get(of, timeout=0, default="nothing")]


async def test_e2_a_key_that_is_set_is_got_at_once_whatever_the_status(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(setter, reader)
    await rt.run(setter("value"), id="w")
    for status in hf.Status:
        await database.execute("update holdfast.workflows set status = $1 where id = 'w'", status.code)
        assert await rt.get_event("w", STATE, timeout=0) == "value"
        assert await rt.run(reader("w", 0)) == "got value"


@pytest.mark.parametrize("status", list(hf.Status))
async def test_e2_a_key_that_is_not_set_is_waited_for_while_the_workflow_is_active(
    processes: Processes, database: Connection, status: hf.Status
) -> None:
    rt = await processes.runtime(reader)
    await rt.start(ELSEWHERE(), id="w")
    await database.execute("update holdfast.workflows set status = $1 where id = 'w'", status.code)
    if status.active:
        with pytest.raises(hf.WaitTimeout):
            await rt.get_event("w", STATE, timeout=0.01)
        assert await rt.get_event("w", STATE, timeout=0.01, default=None) is None
        assert await rt.run(reader("w", 0.01)) == "WaitTimeout"
    else:
        with pytest.raises(hf.WorkflowFinished):
            await within(5, rt.get_event("w", STATE))
        with pytest.raises(hf.WorkflowFinished):
            await within(5, rt.get_event("w", STATE, timeout=60, default="nothing"))
        assert await within(5, rt.run(reader("w", None))) == "WorkflowFinished"


async def test_e2_the_end_of_the_workflow_ends_the_wait(processes: Processes, waits: Waits) -> None:
    here, there = await processes.runtime(ends_without), await processes.runtime(reader)
    handle = await here.start(ends_without(), id="w")
    outside = asyncio.create_task(there.get_event("w", STATE, timeout=60, default="nothing"))
    inside = await there.start(reader("w", None))
    await waits.on("event", "w", "state", times=2)
    await handle.send(GO, None)
    with pytest.raises(hf.WorkflowFinished) as caught:
        await within(2, outside)
    assert caught.value.workflow_id == "w"
    assert await within(2, inside.result()) == "WorkflowFinished"


async def test_e2_cancelling_the_workflow_ends_the_wait(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(reader)
    handle = await rt.start(ELSEWHERE(), id="w")
    inside = await rt.start(reader("w", None))
    await waits.on("event", "w", "state")
    await handle.cancel()
    assert await within(2, inside.result()) == "WorkflowFinished"


async def test_e2_an_id_that_does_not_exist_yet_may_be_waited_for(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(setter, reader), await processes.client()
    with pytest.raises(hf.WaitTimeout):
        await client.get_event("w", STATE, timeout=0)
    outside = asyncio.create_task(client.get_event("w", STATE))
    inside = await rt.start(reader("w", None))
    await waits.on("event", "w", "state", times=2)
    await rt.start(setter("value"), id="w")
    assert await within(2, outside) == "value"
    assert await within(2, inside.result()) == "got value"


async def test_e3_the_value_got_is_recorded(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(reader_then_go, waits_then_sets)
    await first.start(ELSEWHERE(), id="w")
    await set_by_hand(database, "w", 1, b'"old"')
    await first.start(reader_then_go("w", None), id="reader")
    await waits.on("message", "reader", "go")
    await processes.leave(first)
    await set_by_hand(database, "w", 2, b'"new"')
    before = await rows(database, "steps")

    waits.forget()
    second = await processes.runtime(reader_then_go)
    await waits.on("message", "reader", "go")
    assert second.statistics().writer.records == 1  # the recv that waits
    assert second.statistics().lookups.looks == 0
    assert await rows(database, "steps") == before
    await second.send("reader", None, GO)
    assert await second.handle("reader").result() == ["old", "new"]


async def set_by_hand(database: Connection, workflow_id: str, revision: int, payload: bytes) -> None:
    await database.execute(
        "insert into holdfast.events (workflow_id, key, revision, payload, step_id, created_at) "
        "values ($1, 'state', $2, $3, '1', now())",
        workflow_id,
        revision,
        payload,
    )


async def test_e3_the_timeout_is_recorded(processes: Processes, database: Connection, waits: Waits) -> None:
    first = await processes.runtime(reader_then_go)
    await first.start(ELSEWHERE(), id="w")
    await first.start(reader_then_go("w", 0.01), id="reader")
    await waits.on("message", "reader", "go")
    await processes.leave(first)
    await set_by_hand(database, "w", 1, b'"late"')
    second = await processes.runtime(reader_then_go)
    await second.send("reader", None, GO)
    assert await second.handle("reader").result() == ["nothing", "late"]


async def test_e3_a_crash_after_the_commit_of_a_get_does_not_change_its_value(
    processes: Processes, database: Connection, points: Points
) -> None:
    first = await processes.runtime(reader_then_go)
    await first.start(ELSEWHERE(), id="w")
    await set_by_hand(database, "w", 1, b'"old"')
    killed = asyncio.Event()

    def kill() -> None:
        first.executor.lost()
        killed.set()

    points.at("writer.after_commit", kill, nth=2)  # behind the start
    await first.start(reader_then_go("w", None), id="reader")
    await within(5, killed.wait())
    await processes.leave(first)
    await set_by_hand(database, "w", 2, b'"new"')
    second = await processes.runtime(reader_then_go)
    await second.send("reader", None, GO)
    assert await second.handle("reader").result() == ["old", "new"]


async def test_e3_a_crash_before_the_commit_of_a_get_waits_again(
    processes: Processes, waits: Waits, dsn: str, database: Connection
) -> None:
    async with DatabaseClock(dsn) as clock:
        first = await processes.runtime(reader)
        await first.start(reader("w", 3600), id="reader")
        await first.start(reader("w", None), id="other")
        await waits.on("event", "w", "state", times=2)
        await processes.leave(first)
        await clock.advance(3601)
        second = await processes.runtime(reader, setter)
        assert await within(5, second.handle("reader").result()) == "WaitTimeout"
        await second.start(setter("value"), id="w")
        assert await within(5, second.handle("other").result()) == "got value"


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_e3_a_lost_connection_does_not_change_what_was_got(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str
) -> None:
    client = await processes.client()
    await client.start(ELSEWHERE(), id="w")
    await set_by_hand(database, "w", 1, b'"value"')
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(reader, dsn=proxy.dsn)
        lost = getattr(proxy, part)("commit_batch")
        await client.start(reader("w", 60), id="reader")
        assert await within(5, client.handle("reader").result()) == "got value"
        assert lost.happened.is_set()
        await processes.leave(rt)
    assert await database.fetchval("select count(*) from holdfast.steps") == 1


async def test_e2_a_get_in_a_workflow_is_woken_by_notification(processes: Processes, waits: Waits) -> None:
    here, there = await processes.runtime(waits_then_sets), await processes.runtime(reader)
    handle = await here.start(waits_then_sets(), id="w")
    inside = await there.start(reader("w", None))
    await waits.on("event", "w", "state")
    records = there.statistics().writer.records
    await handle.send(GO, None)
    assert await within(2, inside.result()) == "got set"
    await settled(there)
    assert there.statistics().writer.records == records + 2  # one look, and the end
    assert there.statistics().listener.bells >= 1


async def test_n5_a_get_whose_listener_is_cut_before_the_set_is_woken(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    here, there = await processes.runtime(waits_then_sets), await processes.runtime(reader)
    handle = await here.start(waits_then_sets(), id="w")
    inside = await there.start(reader("w", None))
    await waits.on("event", "w", "state")
    async with processes.unheard(database):
        await handle.send(GO, None)
        await waits.on("message", "w", "go", times=2)
        begun = time.monotonic()
    assert await within(5, inside.result()) == "got set"
    assert time.monotonic() - begun < 2
    assert there.statistics().writer.records <= 6


async def test_e4_many_waiters_on_one_key_are_all_served_and_one_that_leaves_disturbs_no_other(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(waits_then_sets, reader), await processes.client()
    idle = client.statistics().waiters.waiting
    handle = await rt.start(waits_then_sets(), id="w")
    inside = [await rt.start(reader("w", None)) for _ in range(20)]
    outside = [asyncio.create_task(client.get_event("w", STATE)) for _ in range(100)]
    short = [asyncio.create_task(client.get_event("w", STATE, timeout=1)) for _ in range(20)]
    await waits.on("event", "w", "state", times=140)
    for task in outside[::2]:
        task.cancel()
    ended = await asyncio.gather(*outside[::2], *short, return_exceptions=True)
    assert [type(end) for end in ended] == [asyncio.CancelledError] * 50 + [hf.WaitTimeout] * 20
    assert client.statistics().waiters.waiting == idle + 50
    queries = client.statistics().lookups.queries
    await handle.send(GO, None)
    assert await within(5, asyncio.gather(*outside[1::2])) == ["set"] * 50
    assert client.statistics().lookups.queries - queries <= 2  # together, not one by one
    assert await asyncio.gather(*(each.result() for each in inside)) == ["got set"] * 20
    assert client.statistics().waiters.waiting == idle


@hf.workflow
async def hundred(of: str) -> list[Any]:
    async def branch(number: int) -> list[Any]:
        return [
            await hf.get_event(of, "state"),
            await hf.get_event(of, f"no {number}", timeout=0, default=number),
        ]

    return list(await asyncio.gather(*(branch(number) for number in range(100))))


async def test_e4_from_100_branches_at_once(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(waits_then_sets, hundred)
    handle = await rt.start(waits_then_sets(), id="w")
    inside = await rt.start(hundred("w"))
    await waits.on("event", "w", "state", times=100)
    await handle.send(GO, None)
    assert await within(10, inside.result()) == [["set", number] for number in range(100)]


@hf.step
async def got_in_step(of: str) -> Any:  # noqa: ANN401
    return await STATE.get(of, timeout=60)


@hf.workflow
async def through_step(of: str) -> list[Any]:
    return [await got_in_step(of)]


async def test_in_a_step_an_event_is_read_and_not_recorded_by_itself(processes: Processes) -> None:
    rt = await processes.runtime(setter, through_step)
    await rt.run(setter("value"), id="w")
    handle = await rt.start(through_step("w"))
    assert await handle.result() == ["value"]
    assert [step.kind for step in await rt.steps(handle.id)] == ["step"]


async def test_a_value_that_does_not_fit_the_type_is_a_decode_error(processes: Processes) -> None:
    rt = await processes.runtime(setter)
    handle = await rt.start(setter("hunter2"))
    with pytest.raises(hf.PayloadDecodeError) as caught:
        await handle.get("state", type=int)
    assert "hunter2" not in str(caught.value)
    assert await handle.get("state", type=str) == "hunter2"


@hf.workflow
async def follows_itself() -> list[Any]:
    me = hf.current().workflow_id
    got = asyncio.create_task(STATE.get(me))
    await STATE.set(1)
    return [await got]


async def test_e2_an_event_of_the_workflow_itself(processes: Processes) -> None:
    rt = await processes.runtime(follows_itself)
    assert await within(5, rt.run(follows_itself())) == [1]


async def test_e4_a_reader_that_was_cancelled_takes_nothing_with_it(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(waits_then_sets, gives_up)
    handle = await rt.start(waits_then_sets(), id="w")
    inside = await rt.start(gives_up("w"), id="reader")
    await waits.on("event", "w", "state")
    await inside.send(GO, None)
    await waits.on("message", "reader", "go", times=2)
    await handle.send(GO, None)
    assert await handle.get(STATE) == "set"
    await inside.send(GO, None)
    assert await within(5, inside.result()) == ["cancelled", "set"]


@hf.workflow
async def gives_up(of: str) -> list[Any]:
    task = asyncio.create_task(STATE.get(of))
    await GO.recv()
    task.cancel()
    ended = await asyncio.gather(task, return_exceptions=True)
    await GO.recv()
    return ["cancelled" if isinstance(ended[0], asyncio.CancelledError) else ended, await STATE.get(of)]


async def test_a_get_outside_a_workflow_says_what_to_call_instead() -> None:
    with pytest.raises(hf.NotInWorkflow, match=r"Runtime\.get_event"):
        hf.get_event("w", "state")

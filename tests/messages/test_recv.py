"""Receiving: the oldest message of a topic, once, recorded together with the taking of it."""

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

LETTERS = hf.Topic[Any]("letters")
GO = hf.Topic[None]("go")


@hf.workflow
async def inbox(count: int) -> list[Any]:
    return [await LETTERS.recv() for _ in range(count)]


@hf.workflow
async def inbox_then_go(count: int) -> list[Any]:
    got = [await LETTERS.recv() for _ in range(count)]
    await GO.recv()
    return got


@hf.workflow
async def topics() -> list[Any]:
    got = [await hf.recv("a"), await hf.recv("b"), await hf.recv(), await hf.recv("a")]
    return [*got, await hf.recv("b", timeout=0, default="nothing")]


@hf.workflow
async def patient(timeout: float | None) -> str:
    try:
        return f"got {await LETTERS.recv(timeout=timeout)}"
    except TimeoutError as error:
        return type(error).__name__


@hf.workflow
async def patient_then_go(timeout: float) -> list[Any]:
    first = await LETTERS.recv(timeout=timeout, default="nothing")
    await GO.recv()
    return [first, await LETTERS.recv(timeout=0, default="nothing")]


async def consumed_by(database: Connection) -> list[str | None]:
    found = await database.fetch("select consumed_by from holdfast.messages order by id")
    return [row[0] for row in found]


async def test_m4_the_oldest_message_of_exactly_that_topic(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    to = await client.start(topics())
    for topic, value in (("b", 1), (None, 2), ("a", 3), ("a", 4), ("A", 5)):
        await to.send(topic, value)
    await processes.runtime(topics)
    assert await to.result() == [3, 1, 2, 4, "nothing"]
    assert await consumed_by(database) == ["2", "3", "1", "4", None]


async def test_m4_a_replayed_recv_does_no_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(inbox_then_go)
    to = await first.start(inbox_then_go(3), id="to")
    for number in range(5):
        await to.send(LETTERS, number)
    await waits.on("message", "to", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "messages")
    claims = points.passed["recv.before_claim"]

    waits.forget()
    second = await processes.runtime(inbox_then_go)
    await waits.on("message", "to", "go")
    assert second.statistics().writer.records == 1
    assert points.passed["recv.before_claim"] == claims + 1
    assert await rows(database, "steps", "messages") == before
    await second.handle("to").send(GO, None)
    assert await second.handle("to").result() == [0, 1, 2]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_m4_a_crash_at_the_commit_of_a_recv_neither_loses_nor_repeats(
    processes: Processes, database: Connection, points: Points, when: str
) -> None:
    client = await processes.client()
    to = await client.start(inbox(3))
    for number in range(3):
        await to.send(LETTERS, number)
    killed = asyncio.Event()
    points.at("recv.before_claim", lambda: points.kill(first, "recv.before_claim", when, killed))
    first = await processes.runtime(inbox)
    await within(5, killed.wait())
    await processes.leave(first)
    assert await consumed_by(database) == ["1", "2" if when == "after" else None, None]
    await processes.runtime(inbox)
    assert await to.result() == [0, 1, 2]
    assert await consumed_by(database) == ["1", "2", "3"]


async def test_m1_a_recv_is_woken_by_notification(processes: Processes, waits: Waits, points: Points) -> None:
    rt, client = await processes.runtime(inbox), await processes.client()
    to = await rt.start(inbox(1))
    await waits.on("message", to.id, "letters")
    batches = rt.statistics().writer.batches
    await client.send(to.id, "hello", LETTERS)
    assert await within(2, to.result()) == ["hello"]
    assert points.passed["recv.before_claim"] == 2  # it looked before it waited, and when the bell rang
    await settled(rt)
    assert rt.statistics().writer.batches == batches + 2  # that look, and the end
    assert rt.statistics().listener.bells >= 1


async def test_n1_a_recv_that_waits_asks_nothing(processes: Processes, waits: Waits, points: Points) -> None:
    rt = await processes.runtime(inbox, settings=hf.Settings(heartbeat=0.1))
    handles = [await rt.start(inbox(1)) for _ in range(50)]
    for to in handles:
        await waits.on("message", to.id, "letters")
    before, heard = rt.statistics(), points.passed["recv.before_claim"]
    await beats(rt, 3)
    after = rt.statistics()
    assert points.passed["recv.before_claim"] == heard
    assert (after.writer, after.lookups) == (before.writer, before.lookups)


async def beats(rt: hf.Runtime, count: int) -> None:
    """Waits for so many heartbeats of a runtime."""
    for _ in range(count):
        last = rt.statistics().listener.last_heard
        while rt.statistics().listener.last_heard == last:
            await asyncio.sleep(0.02)


async def test_n5_a_recv_whose_listener_is_cut_before_the_send_is_woken(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    rt, client = await processes.runtime(inbox), await processes.client()
    to = await rt.start(inbox(1))
    await waits.on("message", to.id, "letters")
    async with processes.unheard(database):
        await client.send(to.id, "hello", LETTERS)
        begun = time.monotonic()
    assert await within(5, to.result()) == ["hello"]
    assert time.monotonic() - begun < 2
    assert points.passed["recv.before_claim"] <= 4


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_m4_a_lost_connection_takes_no_second_message(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str
) -> None:
    client = await processes.client()
    to = await client.start(inbox(3))
    for number in range(4):
        await to.send(LETTERS, number)
    async with Proxy(dsn) as proxy:
        points.at("recv.before_claim", lambda: getattr(proxy, part)("commit_batch"), nth=2)
        rt = await processes.runtime(inbox, dsn=proxy.dsn)
        assert await to.result() == [0, 1, 2]
        assert rt.statistics().writer.repeated == 1
        await processes.leave(rt)
    assert await consumed_by(database) == ["1", "2", "3", None]


async def test_m5_a_send_acknowledged_before_another_is_received_before_it(processes: Processes) -> None:
    rt = await processes.runtime(inbox)
    to = await rt.start(inbox(60))
    senders = [rt, await processes.client(), await processes.client()]
    for number in range(60):
        await senders[number % 3].send(to.id, number, LETTERS)
    assert await to.result() == list(range(60))


async def test_m5_messages_of_one_commit_keep_their_order(processes: Processes, database: Connection) -> None:
    rt, client = await processes.runtime(inbox), await processes.client()
    to = await rt.start(inbox(500))
    await asyncio.gather(*(client.send(to.id, number, LETTERS) for number in range(500)))
    assert client.statistics().writer.batches < 250
    assert await to.result() == list(range(500))


async def test_m5_by_sequence_and_not_by_clock(processes: Processes, dsn: str) -> None:
    client = await processes.client()
    to = await client.start(inbox(3))
    async with DatabaseClock(dsn) as clock:
        for number in range(3):
            await to.send(LETTERS, number)
            await clock.advance(-3600)
    await processes.runtime(inbox)
    assert await to.result() == [0, 1, 2]


@pytest.mark.parametrize("timeout", [0, 0.001, 0.05])
async def test_m6_a_timeout(processes: Processes, timeout: float) -> None:
    rt = await processes.runtime(patient)
    begun = time.monotonic()
    assert await rt.run(patient(timeout)) == "WaitTimeout"
    assert timeout <= time.monotonic() - begun < timeout + 2


async def test_m6_timeout_0_takes_what_is_there(processes: Processes) -> None:
    client = await processes.client()
    to = await client.start(patient(0))
    await to.send(LETTERS, 1)
    await processes.runtime(patient)
    assert await to.result() == "got 1"


async def test_m6_a_long_timeout_by_the_databases_clock(processes: Processes, dsn: str, waits: Waits) -> None:
    rt = await processes.runtime(patient)
    async with DatabaseClock(dsn) as clock:
        to = await rt.start(patient(24 * 3600), id="to")
        await waits.on("message", "to", "letters")
        await clock.advance(24 * 3600 - 60)
        await waits.on("message", "to", "letters", times=2)
        assert (await to.status()).status is hf.Status.PENDING
        await clock.advance(61)
        assert await within(5, to.result()) == "WaitTimeout"


async def test_m6_a_timeout_is_recorded_and_a_later_message_does_not_change_it(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(patient_then_go)
    to = await first.start(patient_then_go(0.01), id="to")
    await waits.on("message", "to", "go")
    await to.send(LETTERS, "late")
    await processes.leave(first)
    second = await processes.runtime(patient_then_go)
    await second.send("to", None, GO)
    assert await second.handle("to").result() == ["nothing", "late"]
    steps = await second.steps("to")
    assert [(s.step_id, s.error) for s in steps] == [("1", "timeout"), ("2", None), ("3", None)]


async def test_w9_after_a_crash_only_the_rest_of_a_timeout_is_waited(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    async with DatabaseClock(dsn) as clock:
        first = await processes.runtime(patient)
        await first.start(patient(3600), id="to")
        await waits.on("message", "to", "letters")
        deadline = await database.fetchval("select deadline from holdfast.steps")
        await processes.leave(first)
        await clock.advance(3600)
        second = await processes.runtime(patient)
        assert await within(5, second.handle("to").result()) == "WaitTimeout"
    assert deadline is not None
    assert await database.fetchval("select deadline from holdfast.steps") == deadline


async def test_w9_a_deadline_that_has_passed_still_gets_one_look(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    async with DatabaseClock(dsn) as clock:
        first = await processes.runtime(patient)
        await first.start(patient(3600), id="to")
        await waits.on("message", "to", "letters")
        await processes.leave(first)
        await clock.advance(7200)
        await (await processes.client()).send("to", 1, LETTERS)
        second = await processes.runtime(patient)
        assert await within(5, second.handle("to").result()) == "got 1"


async def test_w9_a_recv_that_is_served_at_once_writes_no_deadline(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    to = await client.start(patient(3600))
    await to.send(LETTERS, 1)
    rt = await processes.runtime(patient)
    await to.result()
    await settled(rt)
    assert rt.statistics().writer.records == 2  # the recv, once, and the end
    assert len(await rt.steps(to.id)) == 1


@hf.workflow
async def nones() -> list[Any]:
    return [await LETTERS.recv(timeout=60, default="nothing"), await hf.recv(type=type(None))]


async def test_m6_none_is_an_ordinary_message_and_no_timeout(processes: Processes) -> None:
    rt = await processes.runtime(nones)
    to = await rt.start(nones())
    await to.send(LETTERS, None)
    await to.send(None, None)
    assert await to.result() == [None, None]


@hf.workflow
async def numbers_only() -> list[Any]:
    found: list[Any] = []
    for _ in range(3):
        try:
            found.append(await hf.recv("letters", type=int))
        except hf.PayloadDecodeError as error:
            found.append(f"not a number: {'hunter2' in str(error)}")
    await GO.recv()
    return found


async def test_m6_a_message_that_does_not_fit_is_consumed_all_the_same(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(numbers_only)
    to = await first.start(numbers_only(), id="to")
    for value in (1, "hunter2", 2):
        await to.send(LETTERS, value)
    await waits.on("message", "to", "go")
    assert await consumed_by(database) == ["1", "2", "3"]
    await processes.leave(first)
    second = await processes.runtime(numbers_only)
    await second.send("to", None, GO)
    assert await second.handle("to").result() == [1, "not a number: False", 2]


async def test_m6_a_message_that_does_not_fit_fails_the_workflow_that_does_not_catch_it(
    processes: Processes,
) -> None:
    rt = await processes.runtime(typed)
    to = await rt.start(typed())
    await to.send("n", "hunter2")
    with pytest.raises(hf.WorkflowFailed) as caught:
        await to.result()
    assert isinstance(caught.value.__cause__, hf.PayloadDecodeError)
    assert "hunter2" not in repr(caught.value.__cause__)


@hf.workflow
async def typed() -> int:
    return await hf.Topic[int]("n").recv()


@hf.workflow
async def loop() -> list[Any]:
    got = []
    async for letter in LETTERS:
        if letter == "stop":
            break
        got.append(letter)
    return got


async def test_an_inbox_loop(processes: Processes) -> None:
    rt = await processes.runtime(loop)
    to = await rt.start(loop())
    for letter in (1, 2, "stop", 3):
        await to.send(LETTERS, letter)
    assert await to.result() == [1, 2]


@hf.workflow
async def in_a_step() -> None:
    @hf.step
    async def body() -> None:
        await hf.recv()

    await body()


async def test_a_recv_outside_workflow_code_says_so(processes: Processes) -> None:
    with pytest.raises(hf.NotInWorkflow, match="recv works inside a running workflow"):
        hf.recv()
    rt = await processes.runtime(in_a_step)
    with pytest.raises(hf.WorkflowFailed) as caught:
        await rt.run(in_a_step())
    assert "inside a step" in str(caught.value.__cause__)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
async def test_a_timeout_that_is_no_time_is_refused(processes: Processes, timeout: float) -> None:
    rt = await processes.runtime(asks)
    with pytest.raises(hf.WorkflowFailed) as caught:
        await rt.run(asks(str(timeout)))
    assert isinstance(caught.value.__cause__, ValueError)


@hf.workflow
async def asks(timeout: str) -> None:
    await hf.recv(timeout=float(timeout))

"""Several recvs of one workflow at once, and recvs that are cancelled: nobody overtakes, nothing is lost."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, within
from tests.runtime.witness import until

LETTERS = hf.Topic[Any]("letters")
GO = hf.Topic[None]("go")
QUIT = hf.Topic[None]("quit")

TASKS: dict[str, list[asyncio.Task[Any]]] = {}
"""The branches of a workflow that a test cancels by itself."""


def branch(call: hf.Wait[Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(call)
    TASKS.setdefault(hf.current().workflow_id, []).append(task)
    return task


async def outcome(task: asyncio.Task[Any]) -> Any:  # noqa: ANN401
    try:
        return await task
    except asyncio.CancelledError:
        return "cancelled"


@hf.workflow
async def crowd(count: int) -> list[Any]:
    return list(await asyncio.gather(*(LETTERS.recv() for _ in range(count))))


@hf.workflow
async def crowd_of_sequences(branches: int, each: int) -> list[Any]:
    async def sequence() -> list[Any]:
        return [await LETTERS.recv() for _ in range(each)]

    return list(await asyncio.gather(*(sequence() for _ in range(branches))))


@hf.workflow
async def mixed() -> list[Any]:
    return list(
        await asyncio.gather(
            LETTERS.recv(timeout=0.05, default="in vain"),
            LETTERS.recv(),
            LETTERS.recv(timeout=0.05, default="in vain"),
            LETTERS.recv(timeout=3600, default="in vain"),
            LETTERS.recv(timeout=0, default="in vain"),
        )
    )


async def stored(database: Connection) -> list[tuple[str | None, bytes]]:
    found = await database.fetch("select consumed_by, payload from holdfast.messages order by id")
    return [(row[0], bytes(row[1])) for row in found]


@pytest.mark.parametrize("waiting", [True, False], ids=["called first", "sent first"])
async def test_m7_branches_are_served_in_the_order_of_their_calls(
    processes: Processes, waits: Waits, waiting: bool
) -> None:
    client = await processes.client()
    if waiting:
        await processes.runtime(crowd)
        to = await client.start(crowd(20))
        await waits.on("message", to.id, "letters", times=20)
    else:
        to = await client.start(crowd(20))
    for number in range(20):
        await to.send(LETTERS, number)
    if not waiting:
        await processes.runtime(crowd)
    assert await to.result() == list(range(20))


async def test_m7_many_at_once(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(crowd), await processes.client()
    to = await rt.start(crowd(100))
    await waits.on("message", to.id, "letters", times=100)
    await asyncio.gather(*(client.send(to.id, number, LETTERS) for number in range(100)))
    assert await to.result() == list(range(100))


async def test_m7_one_claim_serves_all_that_wait(processes: Processes, waits: Waits, points: Points) -> None:
    rt, client = await processes.runtime(crowd), await processes.client()
    to = await rt.start(crowd(50))
    await waits.on("message", to.id, "letters", times=50)
    before = points.passed["recv.before_claim"]
    assert before <= 2
    await asyncio.gather(*(client.send(to.id, number, LETTERS) for number in range(50)))
    assert await to.result() == list(range(50))
    assert points.passed["recv.before_claim"] - before <= 50


async def test_m7_from_100_branches_each_message_goes_to_one_recv(processes: Processes) -> None:
    rt, client = await processes.runtime(crowd_of_sequences), await processes.client()
    to = await rt.start(crowd_of_sequences(100, 3))
    await asyncio.gather(*(client.send(to.id, number, LETTERS) for number in range(300)))
    got = await to.result()
    assert sorted(chain(*got)) == list(range(300))
    assert all(sequence == sorted(sequence) for sequence in got)


async def test_m7_mixed_timeouts(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(mixed)
    to = await rt.start(mixed())
    await steps_recorded(rt, to.id, {"1", "3", "5"})
    await to.send(LETTERS, "first")
    await to.send(LETTERS, "second")
    assert await to.result() == ["in vain", "first", "in vain", "second", "in vain"]
    assert [by for by, _ in await stored(database)] == ["2", "4"]


async def steps_recorded(rt: hf.Client, workflow_id: str, wanted: set[str]) -> None:
    """Waits until these calls are recorded."""

    async def recorded() -> bool:
        return wanted <= {step.step_id for step in await rt.steps(workflow_id) if step.finished_at}

    await until(recorded, f"recorded: {wanted}")


async def test_m7_a_message_goes_to_the_earlier_recv_even_if_it_has_a_timeout(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(two)
    to = await rt.start(two())
    await waits.on("message", to.id, "letters", times=2)
    await to.send(LETTERS, 1)
    await to.send(LETTERS, 2)
    assert await to.result() == [1, 2]


@hf.workflow
async def two() -> list[Any]:
    return list(await asyncio.gather(LETTERS.recv(timeout=3600), LETTERS.recv()))


async def test_m7_recvs_of_other_topics_are_not_in_the_way(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(three_topics)
    to = await rt.start(three_topics())
    await waits.on("message", to.id)
    for topic, value in (("b", 1), (None, 2), ("a", 3)):
        await to.send(topic, value)
    assert await to.result() == [3, 1, 2]


@hf.workflow
async def three_topics() -> list[Any]:
    return list(await asyncio.gather(hf.recv("a"), hf.recv("b"), hf.recv()))


async def test_m7_a_recovered_crowd_keeps_its_order(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    first = await processes.runtime(crowd)
    to = await first.start(crowd(6), id="to")
    await waits.on("message", "to", "letters", times=6)
    for number in range(3):
        await to.send(LETTERS, number)
    await waits.on("message", "to", "letters", times=9)
    await processes.leave(first)
    client = await processes.client()
    for number in range(3, 6):
        await client.send("to", number, LETTERS)
    await processes.runtime(crowd)
    assert await client.handle("to").result() == list(range(6))


async def test_m7_a_crash_behind_the_claim_of_a_crowd_gives_nothing_back(
    processes: Processes, waits: Waits, points: Points, database: Connection
) -> None:
    client = await processes.client()
    to = await client.start(crowd(3), id="to")
    for number in range(3):
        await to.send(LETTERS, number)
    killed = asyncio.Event()
    points.at("recv.before_claim", lambda: points.at("writer.after_commit", kill), nth=2)

    def kill() -> None:
        first.executor.lost()
        killed.set()

    first = await processes.runtime(crowd)
    await within(5, killed.wait())
    await processes.leave(first)
    # The second claim was for the second recv and the third, which waits for the second's reply.
    assert [by for by, _ in await stored(database)] == ["1", "2", "3"]
    assert len(await client.steps("to")) == 3
    await processes.runtime(crowd)
    assert await within(5, to.result()) == [0, 1, 2]


# Cancelled


@hf.workflow
async def cancelled_once() -> list[Any]:
    got = await outcome(branch(LETTERS.recv()))
    return [got, await LETTERS.recv(timeout=0, default="nothing")]


@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
async def test_m8_cancelled_while_its_claim_is_queued_or_in_flight_the_message_stays(
    processes: Processes, database: Connection, points: Points, moment: str
) -> None:
    client = await processes.client()
    to = await client.start(cancelled_once(), id=f"to {moment}")
    await to.send(LETTERS, "kept")
    points.at(moment, lambda: TASKS[to.id][0].cancel())
    rt = await processes.runtime(cancelled_once)
    assert await within(5, to.result()) == ["cancelled", "kept"]
    assert await stored(database) == [("2", b'"kept"')]
    assert [step.step_id for step in await rt.steps(to.id)] == ["2"]


async def test_m8_cancelled_while_it_waits_the_message_stays(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(cancelled_by_message)
    to = await rt.start(cancelled_by_message())
    await waits.on("message", to.id, "letters")
    await waits.on("message", to.id, "quit")
    await to.send(QUIT, None)
    await waits.on("message", to.id, "go")
    await to.send(LETTERS, "kept")
    await to.send(GO, None)
    assert await to.result() == ["cancelled", "kept"]


@hf.workflow
async def cancelled_by_message() -> list[Any]:
    task = branch(LETTERS.recv())
    await QUIT.recv()
    task.cancel()
    got = await outcome(task)
    await GO.recv()
    return [got, await LETTERS.recv(timeout=0, default="nothing")]


async def test_m8_a_replay_is_cancelled_in_the_same_place(processes: Processes, waits: Waits) -> None:
    first = await processes.runtime(cancelled_by_message)
    to = await first.start(cancelled_by_message(), id="to")
    await waits.on("message", "to", "letters")
    await waits.on("message", "to", "quit")
    await to.send(QUIT, None)
    await waits.on("message", "to", "go")
    await to.send(LETTERS, "kept")
    await processes.leave(first)
    second = await processes.runtime(cancelled_by_message)
    await second.send("to", None, GO)
    assert await within(5, second.handle("to").result()) == ["cancelled", "kept"]


@hf.workflow
async def two_branches() -> list[Any]:
    tasks = [branch(LETTERS.recv()), branch(LETTERS.recv())]
    got = [await outcome(task) for task in tasks]
    return [*got, await LETTERS.recv(timeout=0, default="nothing")]


@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
@pytest.mark.parametrize("victim", [0, 1])
async def test_m8_what_a_cancelled_recv_gives_back_goes_to_the_next_that_waits(
    processes: Processes, database: Connection, waits: Waits, points: Points, moment: str, victim: int
) -> None:
    rt = await processes.runtime(two_branches)
    to = await rt.start(two_branches(), id=f"to {moment} {victim}")
    await waits.on("message", to.id, "letters", times=2)

    def cancel() -> None:
        TASKS[to.id][victim].cancel()

    points.at(moment, cancel)  # the claim goes in the batch of the message
    await to.send(LETTERS, "kept")
    got = await within(5, to.result())
    assert sorted(got) == sorted(["cancelled", "kept", "nothing"])
    assert got[victim] == "cancelled"
    assert len(await stored(database)) == 1


async def test_m8_a_timeout_of_asyncio_around_a_recv_takes_nothing(processes: Processes) -> None:
    rt = await processes.runtime(with_asyncio_timeout)
    to = await rt.start(with_asyncio_timeout())
    await to.send(GO, None)
    await to.send(LETTERS, "kept")
    assert await within(5, to.result()) == ["timeout", "timeout", "kept"]


@hf.workflow
async def with_asyncio_timeout() -> list[Any]:
    got: list[Any] = []
    await GO.recv()
    try:
        async with asyncio.timeout(0):
            await LETTERS.recv()
    except TimeoutError:
        got.append("timeout")
    try:
        await asyncio.wait_for(hf.recv("nothing"), 0.01)
    except TimeoutError:
        got.append("timeout")
    return [*got, await LETTERS.recv()]


async def test_m8_a_failing_sibling_takes_nothing(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(with_failing_sibling)
    to = await rt.start(with_failing_sibling())
    await waits.on("message", to.id, "letters")
    await to.send(QUIT, None)
    await to.send(LETTERS, "kept")
    assert await within(5, to.result()) == ["failed", "kept"]


@hf.workflow
async def with_failing_sibling() -> list[Any]:
    async def fail() -> None:
        await QUIT.recv()
        raise ValueError("no")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(LETTERS.recv())
            group.create_task(fail())
    except ExceptionGroup:
        return ["failed", await LETTERS.recv()]
    return []


@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
async def test_m8_a_workflow_cancelled_with_its_claim_in_flight_takes_nothing(
    processes: Processes, database: Connection, waits: Waits, points: Points, moment: str
) -> None:
    client = await processes.client()
    to = await client.start(inbox_with_cleanup(), id=f"to {moment}")
    await to.send(LETTERS, "kept")
    points.at(moment, lambda: rt.executor.cancel_here([to.id]))
    rt = await processes.runtime(inbox_with_cleanup)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, to.result())
    assert await stored(database) == [("2", b'"kept"')]
    assert [(step.step_id, step.error) for step in await rt.steps(to.id)] == [
        ("1", "interrupted"),
        ("2", None),
    ]


@hf.workflow
async def inbox_with_cleanup() -> None:
    try:
        await LETTERS.recv()
    finally:
        await LETTERS.recv(timeout=0, default="nothing")


async def test_m8_a_recv_that_is_cancelled_by_hand_is_interrupted_and_its_message_stays(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(inbox_with_cleanup)
    to = await rt.start(inbox_with_cleanup())
    await waits.on("message", to.id, "letters")
    assert await to.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, to.result())
    await to.send(LETTERS, "kept")  # M2: a cancelled workflow may be resumed
    assert await stored(database) == [(None, b'"kept"')]
    assert rt.statistics().waiters.waiting == IDLE_RUNTIME


IDLE_RUNTIME = 4
"""A runtime's own waiters: for work, parked and suspect workflows, and for workflows to cancel."""


async def test_n2_recvs_that_are_over_leave_no_waiter(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(crowd)
    idle = rt.statistics().waiters.waiting
    handles = [await rt.start(crowd(10)) for _ in range(5)]
    for to in handles:
        await waits.on("message", to.id, "letters", times=10)
    assert rt.statistics().waiters.waiting == idle + 50
    for to in handles:
        await to.cancel()
    for to in handles:
        with pytest.raises(hf.WorkflowCancelled):
            await to.result()
    assert rt.statistics().waiters.waiting == idle

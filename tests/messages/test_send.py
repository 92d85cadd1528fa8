"""Sending: committed when it returns, once, in order, to whoever exists."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Fault, Proxy
from tests.processes import Points, Processes, Waits, rows, terminate, within

LETTERS = hf.Topic[Any]("letters")
GO = hf.Topic[None]("go")


@hf.workflow
async def inbox(count: int) -> list[Any]:
    return [await LETTERS.recv() for _ in range(count)]


@hf.workflow
async def postman(to: str, count: int) -> str:
    for number in range(count):
        await LETTERS.send(to, number)
    await GO.recv()
    return "done"


@hf.workflow
async def sleeper() -> None:
    await GO.recv()


@hf.workflow
async def to_nobody(to: str) -> str:
    try:
        await LETTERS.send(to, 1)
    except hf.WorkflowError as error:
        found = f"{type(error).__name__} {error.workflow_id}"
    else:
        found = "sent"
    await GO.recv()
    return found


async def stored(database: Connection) -> list[Any]:
    return [
        bytes(row[0]) for row in await database.fetch("select payload from holdfast.messages order by id")
    ]


async def test_m1_a_message_from_a_workflow_is_received(processes: Processes) -> None:
    rt = await processes.runtime(inbox, postman)
    to = await rt.start(inbox(3))
    await rt.start(postman(to.id, 3))
    assert await to.result() == [0, 1, 2]


async def test_m3_a_replayed_send_does_no_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(inbox, postman)
    await first.start(inbox(100), id="to")
    await first.start(postman("to", 3), id="from")
    await waits.on("message", "from", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "messages")

    waits.forget()
    second = await processes.runtime(postman)
    await waits.on("message", "from", "go")
    assert second.statistics().writer.records == 1  # the recv that waits
    assert points.passed["send.before_commit"] == 3
    assert await rows(database, "steps", "messages") == before
    await second.handle("from").send(GO, None)
    assert await second.handle(postman, "from").result() == "done"
    assert len(await stored(database)) == 4


@pytest.mark.parametrize("when", ["before", "after"])
async def test_m3_a_crash_at_the_commit_of_a_send_neither_loses_nor_doubles(
    processes: Processes, database: Connection, points: Points, when: str
) -> None:
    first = await processes.runtime(postman)
    await (await processes.client()).start(inbox(3), id="to")
    killed = points.kill(first, "send.before_commit", when)
    await first.start(postman("to", 3), id="from")
    await within(5, killed.wait())
    await processes.leave(first)
    assert len(await stored(database)) == (when == "after")

    second = await processes.runtime(inbox, postman)
    await second.send("from", None, GO)
    assert await second.handle(postman, "from").result() == "done"
    assert await second.handle(inbox, "to").result() == [0, 1, 2]
    assert len(await stored(database)) == 4


async def test_m1_a_destination_in_another_process_is_woken_by_notification(
    processes: Processes, waits: Waits, points: Points
) -> None:
    here, there = await processes.runtime(postman), await processes.runtime(inbox)
    to = await there.start(inbox(1), id="to")
    await waits.on("message", "to", "letters")
    assert points.passed["recv.before_claim"] == 1
    await here.start(postman("to", 1))
    assert await within(2, to.result()) == [0]
    assert there.statistics().listener.bells >= 1


async def test_n5_a_destination_whose_listener_is_cut_before_the_send_is_woken(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    here, there = await processes.runtime(postman), await processes.runtime(inbox)
    to = await there.start(inbox(1), id="to")
    await waits.on("message", "to", "letters")
    async with processes.unheard(database):
        sender = await here.start(postman("to", 1), id="from")
        await waits.on("message", "from", "go")
    assert sender.id == "from"
    assert await within(2, to.result()) == [0]


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_m3_a_lost_connection_never_doubles_a_send_from_outside(
    processes: Processes, database: Connection, dsn: str, part: str
) -> None:
    rt = await processes.runtime(inbox)
    to = await rt.start(inbox(3))
    async with Proxy(dsn) as proxy:
        client = await processes.client(dsn=proxy.dsn)
        await client.send(to.id, 1, LETTERS)
        lost = getattr(proxy, part)("commit_batch")
        await client.send(to.id, 2, LETTERS)
        assert lost.happened.is_set()
        await client.send(to.id, 3, LETTERS)
        assert client.statistics().writer.repeated == 1
        await processes.leave(client)
    assert await to.result() == [1, 2, 3]
    assert len(await stored(database)) == 3


@hf.step
async def send_from_step(to: str) -> None:
    await LETTERS.send(to, "step")


@hf.workflow
async def sends(to: str) -> None:
    await LETTERS.send(to, "workflow")
    await send_from_step(to)


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
@pytest.mark.parametrize("before", ["send.before_commit", "send.after_commit"], ids=["workflow", "step"])
async def test_m3_a_lost_connection_never_doubles_a_send_from_a_workflow_or_a_step(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str, before: str
) -> None:
    to = await (await processes.runtime(inbox)).start(inbox(2))
    lost: list[Fault] = []
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(sends, dsn=proxy.dsn)
        points.at(before, lambda: lost.append(getattr(proxy, part)("commit_batch")))
        await rt.run(sends(to.id))
        assert await to.result() == ["workflow", "step"]
        assert lost[0].happened.is_set()
        await processes.leave(rt)
    assert len(await stored(database)) == 2


async def test_m3_the_end_of_the_writers_session_never_doubles_a_send(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(inbox, sleeper)
    to = await rt.start(inbox(50))

    async def cut() -> None:
        for _ in range(5):
            await terminate(database, "writer")

    async def send() -> None:
        for number in range(50):
            await rt.send(to.id, number, LETTERS)

    await asyncio.gather(send(), cut())
    assert await to.result() == list(range(50))


async def test_m2_a_destination_that_does_not_exist(processes: Processes, waits: Waits) -> None:
    first = await processes.runtime(to_nobody, sleeper)
    with pytest.raises(hf.WorkflowNotFound) as caught:
        await first.send("to", 1)
    assert caught.value.workflow_id == "to"
    await first.start(to_nobody("to"), id="from")
    await waits.on("message", "from", "go")
    await processes.leave(first)

    # From a workflow it is a recorded outcome, whatever has come to be since.
    second = await processes.runtime(to_nobody, sleeper)
    await second.start(sleeper(), id="to")
    await second.send("from", None, GO)
    assert await second.handle("from").result() == "WorkflowNotFound to"


@hf.workflow
async def fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("end", [inbox(0), fails()], ids=["success", "error"])
async def test_m2_a_destination_that_has_ended(
    processes: Processes, database: Connection, end: hf.Call[Any]
) -> None:
    rt = await processes.runtime(inbox, fails, to_nobody)
    to = await rt.start(end)
    await asyncio.wait([asyncio.ensure_future(to.result())])
    with pytest.raises(hf.WorkflowFinished) as caught:
        await rt.send(to.id, 1, LETTERS, key="k")
    assert caught.value.workflow_id == to.id
    sender = await rt.start(to_nobody(to.id))
    await sender.send(GO, None)
    assert await sender.result() == f"WorkflowFinished {to.id}"
    assert len(await stored(database)) == 1


@pytest.mark.parametrize("status", list(hf.Status))
async def test_m2_the_status_of_the_destination_decides(
    processes: Processes, database: Connection, status: hf.Status
) -> None:
    client = await processes.client()
    to = await client.start(hf.WorkflowRef[[], None]("elsewhere")())
    await database.execute("update holdfast.workflows set status = $1", status.code)
    if status in (hf.Status.SUCCESS, hf.Status.ERROR):
        with pytest.raises(hf.WorkflowFinished):
            await client.send(to.id, 1)
        assert await stored(database) == []
    else:
        await client.send(to.id, 1)
        assert await stored(database) == [b"1"]


async def test_m2_a_bad_destination_harms_no_other_message_of_the_batch(processes: Processes) -> None:
    rt = await processes.runtime(inbox)
    to = await rt.start(inbox(20))
    sent = await asyncio.gather(
        *(rt.send(to.id if n % 2 else "nobody", n, LETTERS) for n in range(40)), return_exceptions=True
    )
    assert [type(each) for each in sent] == [hf.WorkflowNotFound, type(None)] * 20
    assert await to.result() == list(range(1, 40, 2))


async def test_m3_a_key_lets_one_message_through_per_destination(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    for to in ("a", "b"):
        await client.start(inbox(1), id=to)
    await client.send("a", 1, LETTERS, key="k")
    await client.send("a", 2, LETTERS, key="k")
    await client.send("a", 3, key="k")
    await client.send("b", 4, LETTERS, key="k")
    await client.send("a", 5, LETTERS, key="other")
    await asyncio.gather(*(client.send("a", 6, LETTERS, key="at once") for _ in range(100)))
    assert await stored(database) == [b"1", b"4", b"5", b"6"]


async def test_m3_a_key_still_holds_when_its_message_has_been_consumed(processes: Processes) -> None:
    rt = await processes.runtime(inbox)
    to = await rt.start(inbox(2))
    for value in (1, 2):
        await rt.send(to.id, value, LETTERS, key="k")
    await rt.send(to.id, 3, LETTERS)
    assert await to.result() == [1, 3]


@hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
async def send_and_fail(to: str, key: str | None) -> None:
    await LETTERS.send(to, hf.current().attempt, key=key)
    if hf.current().attempt < 3:
        raise ValueError("again")


@hf.workflow
async def tries(to: str, key: str | None) -> None:
    await send_and_fail(to, key)


@pytest.mark.parametrize(("key", "sent"), [(None, [b"1", b"2", b"3"]), ("k", [b"1"])])
async def test_m3_a_step_sends_at_least_once_and_with_a_key_once(
    processes: Processes, database: Connection, key: str | None, sent: list[bytes]
) -> None:
    rt = await processes.runtime(tries, inbox)
    await (await processes.client()).start(hf.WorkflowRef[[], None]("elsewhere")(), id="to")
    await rt.run(tries("to", key))
    assert await stored(database) == sent


@hf.workflow
async def sends_with_key(to: str) -> None:
    await LETTERS.send(to, 1, key="k")
    await LETTERS.send(to, 2, key="k")
    await asyncio.gather(*(LETTERS.send(to, 3, key="k") for _ in range(10)))


async def test_m3_a_key_is_good_inside_and_outside_alike(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(sends_with_key)
    await rt.start(hf.WorkflowRef[[], None]("elsewhere")(), id="to")
    await rt.run(sends_with_key("to"))
    await rt.send("to", 4, key="k")
    assert await stored(database) == [b"1"]


@hf.workflow
async def fan_out(to: str) -> list[str]:
    async def branch(number: int) -> None:
        await LETTERS.send(to, [number, 0])
        await LETTERS.send(to, [number, 1])

    await asyncio.gather(*(branch(number) for number in range(100)))
    return [hf.current().workflow_id]


async def test_m9_from_100_branches_at_once(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(inbox, fan_out)
    to = await rt.start(inbox(200))
    sender = await rt.start(fan_out(to.id))
    got = await to.result()
    assert sorted(got) == sorted([n, i] for n in range(100) for i in (0, 1))
    assert [n for n, i in got if i == 0] == list(range(100))
    for number in range(100):
        assert got.index([number, 0]) < got.index([number, 1])
    await sender.result()
    steps = {(s.step_id, s.kind) for s in await rt.steps(sender.id)}
    assert steps == {(f"{branch}.{call}", "send") for branch in range(1, 101) for call in (1, 2)}


async def test_m9_from_100_workflows_at_once(processes: Processes) -> None:
    here, there = await processes.runtime(postman), await processes.runtime(inbox)
    to = await there.start(inbox(300))
    senders = await asyncio.gather(*(here.start(postman(to.id, 3)) for _ in range(100)))
    got = await to.result()
    assert sorted(got) == sorted([0, 1, 2] * 100)
    await asyncio.gather(*(sender.send(GO, None) for sender in senders))
    await asyncio.gather(*(sender.result() for sender in senders))


@hf.workflow
async def to_itself() -> list[int]:
    me = hf.current().workflow_id
    for number in range(3):
        await hf.send(me, number)
    return [await hf.recv(type=int) for _ in range(3)]


@hf.workflow
async def to_child() -> list[Any]:
    child = await hf.start(inbox(2))
    await LETTERS.send(child.id, "a")
    await child.send(LETTERS, "b")
    return await child.result()


async def test_m9_to_itself_and_to_a_child(processes: Processes) -> None:
    rt = await processes.runtime(to_itself, to_child, inbox)
    assert await rt.run(to_itself()) == [0, 1, 2]
    assert await rt.run(to_child()) == ["a", "b"]


async def test_m9_to_a_workflow_that_has_not_begun_to_run(processes: Processes) -> None:
    client = await processes.client()
    to = await client.start(inbox(3))
    for number in range(3):
        await to.send(LETTERS, number)
    assert (await to.status()).status is hf.Status.ENQUEUED
    await processes.runtime(inbox)
    assert await to.result() == [0, 1, 2]


async def test_m1_what_is_sent_while_nobody_runs_the_destination_waits_for_it(
    processes: Processes, waits: Waits
) -> None:
    first = await processes.runtime(inbox)
    to = await first.start(inbox(3), id="to")
    await waits.on("message", "to", "letters")
    await to.send(LETTERS, 0)
    await waits.on("message", "to", "letters", times=2)
    await processes.leave(first)
    client = await processes.client()
    await client.send("to", 1, LETTERS)
    await client.send("to", 2, LETTERS)
    await processes.runtime(inbox)
    assert await client.handle(inbox, "to").result() == [0, 1, 2]


async def test_a_send_outside_a_workflow_says_what_to_call_instead(processes: Processes) -> None:
    with pytest.raises(hf.NotInWorkflow, match=r"Runtime\.send"):
        hf.send("w", 1)

"""Writing: offsets without holes in the order of the calls, once from a workflow, until it is closed."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Fault, Proxy
from tests.processes import Points, Processes, Waits, rows, terminate, within

TOKENS = hf.Stream[Any]("tokens")
GO = hf.Topic[None]("go")


@hf.workflow
async def writer(count: int) -> str:
    for number in range(count):
        await TOKENS.write(number)
    await TOKENS.write("a", "b")
    await GO.recv()
    return "done"


@hf.workflow
async def closer() -> str:
    await TOKENS.write(1)
    await TOKENS.close()
    try:
        await TOKENS.write(2)
    except hf.StreamClosed as error:
        found = f"closed {error.stream}"
    else:
        found = "written"
    await GO.recv()
    return found


async def offsets(database: Connection) -> list[tuple[int, bytes]]:
    found = await database.fetch(
        'select "offset", payload from holdfast.stream_values order by key, "offset"'
    )
    return [(row[0], bytes(row[1])) for row in found]


async def test_s1_offsets_without_holes_in_the_order_of_the_calls(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(several)
    handle = await rt.start(several())
    await handle.result()
    items = [item async for item in handle.read("one").items()]
    assert [(item.offset, item.value, item.attempt) for item in items] == [
        (0, 1, 1),
        (1, None, 1),
        (2, "x", 1),
    ]
    assert await handle.read("two").collect() == [[], {}, None, 2]
    assert await handle.read("never written").collect() == []
    assert len(await rt.steps(handle.id)) == 4


@hf.workflow
async def several() -> None:
    await hf.write_stream("one", 1, None)
    await hf.write_stream("two", [], {}, None)
    await hf.write_stream("one", "x")
    await hf.write_stream("two", 2)


async def test_s2_a_replayed_write_does_no_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(writer)
    await first.start(writer(3), id="w")
    await waits.on("message", "w", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "stream_values", "streams")

    waits.forget()
    second = await processes.runtime(writer)
    await waits.on("message", "w", "go")
    assert second.statistics().writer.records == 1  # the recv that waits
    assert points.passed["write.before_commit"] == 4
    assert await rows(database, "steps", "stream_values", "streams") == before
    await second.send("w", None, GO)
    assert await second.handle("w").result() == "done"
    assert await second.handle("w").read(TOKENS).collect() == [0, 1, 2, "a", "b"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_s2_a_crash_at_the_commit_of_a_write_neither_loses_nor_doubles(
    processes: Processes, database: Connection, points: Points, when: str
) -> None:
    first = await processes.runtime(writer)
    points.at("write.before_commit", lambda: points.kill(first, "write.before_commit", when, killed))
    killed = asyncio.Event()
    await first.start(writer(1), id="w")
    await within(5, killed.wait())
    await processes.leave(first)
    assert len(await offsets(database)) == (3 if when == "after" else 1)
    second = await processes.runtime(writer)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == "done"
    assert await offsets(database) == [(0, b"0"), (1, b'"a"'), (2, b'"b"')]


@hf.step
async def write_in_step() -> None:
    await TOKENS.write("step", "step too")


@hf.workflow
async def writes_twice() -> None:
    await TOKENS.write("workflow", "workflow too")
    await write_in_step()
    await TOKENS.write("end")


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
@pytest.mark.parametrize("before", ["write.before_commit", "write.after_commit"], ids=["workflow", "step"])
async def test_s2_a_lost_connection_never_doubles_a_value(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str, before: str
) -> None:
    lost: list[Fault] = []
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(writes_twice, dsn=proxy.dsn)
        points.at(before, lambda: lost.append(getattr(proxy, part)("commit_batch")))
        await rt.run(writes_twice())
        assert lost[0].happened.is_set()
        await processes.leave(rt)
    words = [b'"workflow"', b'"workflow too"', b'"step"', b'"step too"', b'"end"']
    assert await offsets(database) == list(enumerate(words))


async def test_s2_the_end_of_the_writers_session_leaves_no_hole(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(writer)
    handle = await rt.start(writer(200), id="w")
    for _ in range(5):
        await terminate(database, "writer")
    await handle.send(GO, None)
    assert await handle.result() == "done"
    assert await handle.read(TOKENS).collect() == [*range(200), "a", "b"]


@hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
async def write_and_fail() -> None:
    await TOKENS.write(f"try {hf.current().attempt}", "more")
    if hf.current().attempt < 3:
        raise ValueError("again")


@hf.workflow
async def tries() -> None:
    await TOKENS.write("begin")
    await write_and_fail()
    await TOKENS.write("end")


async def test_s2_from_a_step_all_values_of_all_tries_are_visible_and_told_apart(
    processes: Processes,
) -> None:
    rt = await processes.runtime(tries)
    handle = await rt.start(tries())
    items = [item async for item in handle.read(TOKENS).items()]
    assert [(item.offset, item.value, item.attempt) for item in items] == [
        (0, "begin", 1),
        (1, "try 1", 1),
        (2, "more", 1),
        (3, "try 2", 2),
        (4, "more", 2),
        (5, "try 3", 3),
        (6, "more", 3),
        (7, "end", 1),
    ]


@hf.workflow
async def hundred() -> None:
    async def branch(number: int) -> None:
        await TOKENS.write([number, 0], [number, 1])
        await TOKENS.write([number, 2])
        await hf.write_stream(f"own {number}", number)

    await asyncio.gather(*(branch(number) for number in range(100)))


async def test_s1_from_100_branches_at_once(processes: Processes) -> None:
    rt = await processes.runtime(hundred)
    handle = await rt.start(hundred())
    items = [item async for item in handle.read(TOKENS).items()]
    assert [item.offset for item in items] == list(range(300))
    values = [item.value for item in items]
    assert values[:200] == [[number, index] for number in range(100) for index in (0, 1)]
    assert sorted(values[200:]) == [[number, 2] for number in range(100)]
    for number in range(100):
        assert await handle.read(f"own {number}").collect() == [number]
    steps = {step.step_id for step in await rt.steps(handle.id)}
    assert steps == {f"{branch}.{call}" for branch in range(1, 101) for call in (1, 2, 3)}


async def test_s1_a_write_of_nothing_is_recorded_and_writes_nothing(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(writes_nothing)
    await rt.run(writes_nothing())
    assert await offsets(database) == [(0, b"1")]


@hf.workflow
async def writes_nothing() -> None:
    await TOKENS.write()
    await TOKENS.write(1)


# Closing


async def test_s3_a_closed_stream_ends_and_refuses(processes: Processes) -> None:
    rt = await processes.runtime(closer)
    handle = await rt.start(closer())
    reader = handle.read(TOKENS)
    assert await within(5, reader.collect()) == [1]
    assert (reader.closed, reader.ended) == (True, True)
    assert (await handle.status()).status is hf.Status.PENDING
    await handle.send(GO, None)
    assert await handle.result() == "closed tokens"
    assert [(s.kind, s.error) for s in await rt.steps(handle.id)] == [
        ("write_stream", None),
        ("close_stream", None),
        ("write_stream", "closed"),
        ("recv", None),
    ]


async def test_s3_a_replayed_close_and_a_replayed_refusal_do_no_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(closer)
    await first.start(closer(), id="w")
    await waits.on("message", "w", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "stream_values", "streams")
    waits.forget()
    second = await processes.runtime(closer)
    await waits.on("message", "w", "go")
    assert second.statistics().writer.records == 1
    assert points.passed["close.before_commit"] == 1
    assert await rows(database, "steps", "stream_values", "streams") == before
    # Recorded: even if the stream were open again, a replay gets the same.
    await processes.leave(second)
    await database.execute("delete from holdfast.streams")
    third = await processes.runtime(closer)
    await third.send("w", None, GO)
    assert await third.handle("w").result() == "closed tokens"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_s3_a_crash_at_the_commit_of_a_close(
    processes: Processes, database: Connection, points: Points, when: str
) -> None:
    first = await processes.runtime(closer)
    killed = points.kill(first, "close.before_commit", when)
    await first.start(closer(), id="w")
    await within(5, killed.wait())
    await processes.leave(first)
    assert await database.fetchval("select count(*) from holdfast.streams") == (when == "after")
    second = await processes.runtime(closer)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == "closed tokens"
    assert await offsets(database) == [(0, b"1")]


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_s3_a_lost_connection_at_a_close(
    processes: Processes, database: Connection, dsn: str, points: Points, part: str
) -> None:
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(closer, dsn=proxy.dsn)
        points.at("close.before_commit", lambda: getattr(proxy, part)("commit_batch"))
        handle = await rt.start(closer())
        await handle.send(GO, None)
        assert await handle.result() == "closed tokens"
        assert rt.statistics().writer.repeated == 1
        await processes.leave(rt)
    assert await offsets(database) == [(0, b"1")]


@pytest.mark.parametrize("cut", [False, True], ids=["by notification", "with the listener cut"])
async def test_s3_a_reader_in_another_process_is_woken_by_the_close(
    processes: Processes, database: Connection, waits: Waits, cut: bool
) -> None:
    rt, client = await processes.runtime(closes_when_told), await processes.client()
    handle = await rt.start(closes_when_told(), id="w")
    reading = asyncio.create_task(client.read_stream("w", TOKENS).collect())
    await waits.on("stream", "w", "tokens")
    async with processes.unheard(database) if cut else nullcontext():
        await handle.send(GO, None)
        await waits.on("message", "w", "go", times=2)
    assert await within(2, reading) == []
    assert client.statistics().lookups.looks <= (4 if cut else 2)
    assert (await handle.status()).status is hf.Status.PENDING


@hf.workflow
async def closes_when_told() -> None:
    await GO.recv()
    await TOKENS.close()
    await GO.recv()


@hf.step
async def close_in_step() -> None:
    await TOKENS.write("last")
    await TOKENS.close()
    await TOKENS.close()


@hf.step
async def write_to_closed() -> str:
    try:
        await TOKENS.write("too late")
    except hf.StreamClosed:
        return "closed"
    return "written"


@hf.workflow
async def closes_in_step() -> list[str]:
    await close_in_step()
    await TOKENS.close()
    await TOKENS.close()
    return [await write_to_closed()]


async def test_s3_closing_twice_is_harmless_and_closing_from_a_step_works(processes: Processes) -> None:
    rt = await processes.runtime(closes_in_step)
    handle = await rt.start(closes_in_step())
    assert await handle.result() == ["closed"]
    assert await handle.read(TOKENS).collect() == ["last"]


@hf.workflow
async def close_among_writes() -> list[str]:
    calls = [
        TOKENS.write(0),
        TOKENS.write(1),
        TOKENS.close(),
        TOKENS.write(2),
        TOKENS.close(),
        TOKENS.write(3),
    ]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [type(end).__name__ for end in ended]


async def test_s3_within_one_commit_the_order_of_the_calls_decides(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(close_among_writes)
    ended = await rt.run(close_among_writes())
    assert ended == ["NoneType", "NoneType", "NoneType", "StreamClosed", "NoneType", "StreamClosed"]
    assert await offsets(database) == [(0, b"0"), (1, b"1")]


@hf.workflow
async def hundred_closes() -> None:
    async def branch(number: int) -> None:
        await hf.write_stream(f"s{number}", number)
        await hf.close_stream(f"s{number}")
        await hf.close_stream("all")

    await asyncio.gather(*(branch(number) for number in range(100)))
    await GO.recv()


async def test_s3_closing_from_100_branches_at_once(processes: Processes) -> None:
    rt = await processes.runtime(hundred_closes)
    handle = await rt.start(hundred_closes())
    reads = [handle.read(f"s{number}").collect() for number in range(100)]
    assert await within(10, asyncio.gather(*reads)) == [[number] for number in range(100)]
    assert await within(10, handle.read("all").collect()) == []


async def test_s3_streams_of_one_name_in_two_workflows_are_two(processes: Processes) -> None:
    rt = await processes.runtime(closer, writer)
    one, other = await rt.start(closer()), await rt.start(writer(0))
    assert await one.read(TOKENS).collect() == [1]
    await other.send(GO, None)
    assert await other.result() == "done"


async def test_a_write_outside_a_workflow_says_so() -> None:
    for verb in (hf.write_stream, hf.close_stream):
        with pytest.raises(hf.NotInWorkflow, match="only a workflow writes its streams"):
            verb("tokens")

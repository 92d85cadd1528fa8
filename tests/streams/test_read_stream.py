"""Reading: a prefix without gaps or repeats, live, in any process, to the end and no further."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast._store.looks import STREAM_BATCH
from holdfast.testing.faults import Proxy
from tests.processes import Processes, Waits, rows, terminate, within

TOKENS = hf.Stream[Any]("tokens")
NEXT = hf.Topic[Any]("next")
ELSEWHERE = hf.WorkflowRef[[], None]("elsewhere")


@hf.workflow
async def mirror() -> str:
    """Writes what it is sent, until it is sent None."""
    async for value in NEXT:
        if value is None:
            break
        await TOKENS.write(value)
    return "done"


@hf.workflow
async def burst(count: int) -> None:
    await TOKENS.write(*range(count))


@hf.workflow
async def fails(count: int) -> None:
    await TOKENS.write(*range(count))
    raise ValueError("no")


async def following(reader: hf.Reader[Any]) -> Any:  # noqa: ANN401
    return await within(5, anext(reader))


async def test_s5_live_in_another_process_each_value_as_it_is_committed(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror())
    reader = client.handle(mirror, handle.id).read(TOKENS)
    for number in range(10):
        await handle.send(NEXT, number)
        assert await following(reader) == number
        assert (reader.offset, reader.closed, reader.ended) == (number, False, False)
    await handle.send(NEXT, None)
    with pytest.raises(StopAsyncIteration):
        await following(reader)
    assert (reader.closed, reader.ended) == (False, True)
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_s5_a_reader_is_woken_by_notification(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = asyncio.create_task(following(client.read_stream("w", TOKENS)))
    await waits.on("stream", "w", "tokens")
    await handle.send(NEXT, 1)
    assert await within(2, reading) == 1
    assert client.statistics().lookups.looks == 2  # before it waited, and when the bell rang
    assert client.statistics().listener.bells >= 1


async def test_n5_a_reader_whose_listener_is_cut_sees_the_next_value(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = asyncio.create_task(following(client.read_stream("w", TOKENS)))
    await waits.on("stream", "w", "tokens")
    async with processes.unheard(database):
        await handle.send(NEXT, 1)
        await waits.on("message", "w", "next", times=2)
        begun = time.monotonic()
    assert await within(5, reading) == 1
    assert time.monotonic() - begun < 2
    assert client.statistics().lookups.looks <= 4


async def test_s5_no_gaps_and_no_repeats_while_connections_are_cut(
    processes: Processes, database: Connection
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = [asyncio.create_task(client.read_stream("w", TOKENS).collect()) for _ in range(10)]
    for number in range(100):
        await handle.send(NEXT, number)
        if number % 20 == 0:
            await terminate(database, ("listener", "lookups", "writer")[number // 20 % 3])
    await handle.send(NEXT, None)
    assert await within(15, asyncio.gather(*reading)) == [list(range(100))] * 10


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_s5_a_lost_look_is_asked_again(processes: Processes, dsn: str, part: str) -> None:
    rt = await processes.runtime(burst)
    handle = await rt.start(burst(10))
    await handle.result()
    async with Proxy(dsn) as proxy:
        client = await processes.client(dsn=proxy.dsn)
        lost = getattr(proxy, part)("look_streams")
        assert await client.read_stream(handle.id, TOKENS).collect() == list(range(10))
        assert lost.happened.is_set()
        await processes.leave(client)


async def test_s5_an_unknown_workflow(processes: Processes) -> None:
    client = await processes.client()
    reader = client.read_stream("nobody", TOKENS)
    for _ in range(2):
        with pytest.raises(hf.WorkflowNotFound) as caught:
            await anext(reader)
        assert caught.value.workflow_id == "nobody"
    with pytest.raises(hf.WorkflowNotFound):
        await client.read_stream("nobody", TOKENS).collect()


@pytest.mark.parametrize("count", [0, 1, STREAM_BATCH - 1, STREAM_BATCH, STREAM_BATCH + 1, 2 * STREAM_BATCH])
async def test_s5_long_streams_come_in_pieces(processes: Processes, count: int) -> None:
    rt, client = await processes.runtime(burst), await processes.client()
    handle = await rt.start(burst(count))
    await handle.result()
    assert await client.read_stream(handle.id, "tokens", type=int).collect() == list(range(count))
    assert client.statistics().lookups.looks <= count // STREAM_BATCH + 1


async def test_s4_a_stream_that_is_not_closed_ends_with_its_workflow(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror, fails), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = [asyncio.create_task(client.read_stream("w", TOKENS).collect()) for _ in range(20)]
    await waits.on("stream", "w", "tokens", times=20)
    for value in (1, 2, None):
        await handle.send(NEXT, value)
    assert await within(2, asyncio.gather(*reading)) == [[1, 2]] * 20
    failed = await rt.start(fails(3))
    assert await within(5, client.read_stream(failed.id, TOKENS).collect()) == [0, 1, 2]


async def test_s4_a_stream_ends_when_its_workflow_is_cancelled(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    running = await rt.start(mirror(), id="running")
    enqueued = await client.start(ELSEWHERE(), id="enqueued")
    reading = [asyncio.create_task(handle.read(TOKENS).collect()) for handle in (running, enqueued)]
    for workflow_id in ("running", "enqueued"):
        await waits.on("stream", workflow_id, "tokens")
    await running.send(NEXT, 1)
    await waits.on("stream", "running", "tokens", times=2)
    await client.cancel("running")
    await client.cancel("enqueued")
    assert await within(2, asyncio.gather(*reading)) == [[1], []]


@pytest.mark.parametrize("status", list(hf.Status))
async def test_s4_the_status_of_the_workflow_decides(
    processes: Processes, database: Connection, waits: Waits, status: hf.Status
) -> None:
    client = await processes.client()
    await client.start(ELSEWHERE(), id="w")
    await database.execute(
        "insert into holdfast.stream_values values ('w', 'tokens', 0, '1', null, 1, '1', null, now())"
    )
    await database.execute("update holdfast.workflows set status = $1", status.code)
    reader = client.read_stream("w", TOKENS)
    assert await following(reader) == 1
    if status.active:
        waiting = asyncio.create_task(anext(reader))
        await waits.on("stream", "w", "tokens")
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not reader.ended
    else:
        with pytest.raises(StopAsyncIteration):
            await following(reader)


async def test_s6_behind_an_offset(processes: Processes) -> None:
    rt = await processes.runtime(burst)
    handle = await rt.start(burst(10))
    await handle.result()
    for after in (None, -1, 0, 3, 8):
        items = [item async for item in handle.read(TOKENS, after=after).items()]
        first = 0 if after is None else after + 1
        assert [(item.offset, item.value) for item in items] == [(n, n) for n in range(first, 10)]
    assert await handle.read(TOKENS, after=9).collect() == []
    assert await handle.read(TOKENS, after=10_000).collect() == []


async def test_s6_a_reader_that_reconnects_anywhere_loses_and_repeats_nothing(processes: Processes) -> None:
    rt = await processes.runtime(mirror)
    readers = [await processes.client() for _ in range(3)]
    handle = await rt.start(mirror())
    seen: list[Any] = []
    after = None
    for number in range(30):
        await handle.send(NEXT, number)
        async for item in readers[number % 3].read_stream(handle.id, TOKENS, after=after).items():
            seen.append(item.value)
            after = item.offset
            break
    assert seen == list(range(30))


async def test_s5_written_by_one_process_after_another(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    client = await processes.client()
    first = await processes.runtime(mirror)
    handle = await first.start(mirror(), id="w")
    reader = client.read_stream("w", TOKENS)
    await handle.send(NEXT, 0)
    assert await following(reader) == 0
    await processes.leave(first)
    await client.send("w", 1, NEXT)
    second = await processes.runtime(mirror)
    assert await following(reader) == 1
    await second.send("w", None, NEXT)
    assert await reader.collect() == []
    found = await rows(database, "stream_values")
    assert [row[2] for row in found["stream_values"]] == [0, 1]


# Leaving


async def test_s9_abandoning_a_reader_frees_its_waiter_at_once(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, 1)
    idle = client.statistics().waiters.waiting
    async for _ in client.read_stream("w", TOKENS):
        break
    assert client.statistics().waiters.waiting == idle

    waits.forget()
    reading = [asyncio.create_task(client.read_stream("w", TOKENS).collect()) for _ in range(100)]
    await waits.on("stream", "w", "tokens", times=100)
    assert client.statistics().waiters.waiting == idle + 100
    for task in reading:
        task.cancel()
    ended = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(end) for end in ended} == {asyncio.CancelledError}
    assert client.statistics().waiters.waiting == idle

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.read_stream("w", TOKENS).collect()
    assert client.statistics().waiters.waiting == idle


async def test_s9_a_reader_whose_read_was_cancelled_goes_on_where_it_was(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reader = client.read_stream("w", TOKENS)
    await handle.send(NEXT, 0)
    assert await following(reader) == 0
    waits.forget()
    waiting = asyncio.create_task(following(reader))
    await waits.on("stream", "w", "tokens")
    waiting.cancel()
    await asyncio.wait([waiting])
    for value in (1, 2, None):
        await handle.send(NEXT, value)
    assert await within(5, reader.collect()) == [1, 2]


async def test_s9_leaving_a_reader_ends_it(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    for value in (1, 2):
        await handle.send(NEXT, value)
    idle = client.statistics().waiters.waiting
    async with client.read_stream("w", TOKENS) as reader:
        async for value in reader:
            if value == 1:
                break
    with pytest.raises(StopAsyncIteration):
        await anext(reader)

    waiting_reader = client.read_stream("w", TOKENS, after=1)
    waits.forget()
    reading = asyncio.create_task(waiting_reader.collect())
    await waits.on("stream", "w", "tokens")
    await waiting_reader.aclose()
    assert await within(5, reading) == []
    assert client.statistics().waiters.waiting == idle


async def test_s9_the_end_of_a_client_ends_what_reads_there(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    await rt.start(mirror(), id="w")
    reading = asyncio.create_task(client.read_stream("w", TOKENS).collect())
    await waits.on("stream", "w", "tokens")
    await processes.leave(client)
    with pytest.raises((hf.NotRunning, asyncio.CancelledError)):
        await within(5, reading)


# In a step


@hf.step
async def read_in_step(of: str) -> list[Any]:
    return await TOKENS.read(of).collect()


@hf.workflow
async def follower(of: str) -> list[Any]:
    got = await read_in_step(of)
    await NEXT.recv()
    return got


async def test_s5_read_in_a_step_and_recorded_with_it(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(burst, follower)
    await first.start(burst(5), id="w")
    await first.start(follower("w"), id="follower")
    await waits.on("message", "follower", "next")
    await processes.leave(first)
    await database.execute("delete from holdfast.stream_values")
    second = await processes.runtime(follower)
    await second.send("follower", None, NEXT)
    assert await second.handle("follower").result() == [0, 1, 2, 3, 4]


async def test_a_value_that_does_not_fit_the_type_is_a_decode_error_and_passes(processes: Processes) -> None:
    rt = await processes.runtime(mirror)
    handle = await rt.start(mirror())
    for value in (1, "hunter2", 3, None):
        await handle.send(NEXT, value)
    reader = handle.read("tokens", type=int)
    assert await following(reader) == 1
    with pytest.raises(hf.PayloadDecodeError) as caught:
        await following(reader)
    assert "hunter2" not in str(caught.value)
    assert await reader.collect() == [3]


async def test_a_read_outside_a_workflow_says_what_to_call_instead() -> None:
    with pytest.raises(hf.NotInWorkflow, match=r"Runtime\.read_stream"):
        hf.read_stream("w", "tokens")

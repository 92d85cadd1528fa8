"""Trimming: values before an offset are forgotten, offsets go on, readers are told what they miss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast as hf
from holdfast._store import streams
from holdfast._store.connection import Connection
from holdfast.errors import NotRunning
from tests.processes import PATIENCE, Processes, Waits, rows, within

TOKENS = hf.Stream[Any]("tokens")
NEXT = hf.Topic[Any]("next")


@hf.workflow
async def trimmer() -> list[Any]:
    """Does what it is sent."""
    done = []
    async for verb, number in NEXT:
        match verb:
            case "write":
                await TOKENS.write(*range(number))
            case "trim":
                done.append(await TOKENS.trim(number))
            case "close":
                await TOKENS.close()
            case "end":
                return done
    return done


async def offsets(client: hf.Client, **span: Any) -> list[int]:  # noqa: ANN401
    reader = client.read_stream("w", TOKENS, follow=False, **span)
    return [item.offset async for item in reader.items()]


async def told(handle: hf.Handle[Any], waits: Waits, *orders: tuple[str, int]) -> None:
    """Has the workflow do something, and waits until it has."""
    for order in orders:
        waits.forget()
        await handle.send(NEXT, order)
        await waits.on("message", "w", "next")


@pytest.fixture
async def handle(processes: Processes, waits: Waits) -> hf.Handle[list[Any]]:
    rt = await processes.runtime(trimmer)
    handle = await rt.start(trimmer(), id="w")
    await waits.on("message", "w", "next")
    return handle


async def test_what_is_trimmed_is_gone_and_offsets_go_on(
    processes: Processes, database: Connection, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 10), ("trim", 4))
    assert await offsets(client) == [4, 5, 6, 7, 8, 9]
    assert await database.fetchval("select count(*) from holdfast.stream_values") == 6
    await told(handle, waits, ("trim", 2), ("write", 2))
    assert await offsets(client) == [4, 5, 6, 7, 8, 9, 10, 11]
    await handle.send(NEXT, ("end", 0))
    assert await handle.result() == [4, 4]


async def test_trimming_everything_reuses_no_offset(
    processes: Processes, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 10))
    assert await client.trim_stream("w", TOKENS, before=10_000) == 10, "clamped to the length"
    assert await offsets(client) == []
    assert await client.trim_stream("w", "tokens", before=10_000) == 10
    await told(handle, waits, ("write", 3))
    assert await offsets(client) == [10, 11, 12]
    assert await offsets(client, last=2) == [11, 12]
    assert await offsets(client, last=100) == [10, 11, 12]
    assert await offsets(client, last=0) == []


async def test_a_reader_that_missed_values_is_told(
    processes: Processes, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 10), ("trim", 4))
    for follow in (True, False):
        for after in (0, 1, 2):
            reader = client.read_stream("w", TOKENS, after=after, follow=follow)
            with pytest.raises(hf.StreamTrimmed) as caught:
                await anext(reader)
            assert caught.value.oldest == 4
        assert (await anext(client.read_stream("w", TOKENS, after=3, follow=follow))) == 4
        reader = client.read_stream("w", TOKENS, follow=follow)
        assert await anext(reader) == 4
        assert reader.offset == 4
    await told(handle, waits, ("trim", 10))
    with pytest.raises(hf.StreamTrimmed):
        await within(5, anext(client.read_stream("w", TOKENS, after=3)))


async def test_a_slow_reader_that_is_overtaken_is_told(
    processes: Processes, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 600))
    slow, waiting = client.read_stream("w", TOKENS), client.read_stream("w", "empty")
    assert [await anext(slow) for _ in range(100)] == list(range(100))
    task = asyncio.create_task(anext(waiting))
    await told(handle, waits, ("trim", 550))
    assert [await anext(slow) for _ in range(400)] == list(range(100, 500)), "what it has fetched it gives"
    for _ in range(2):
        with pytest.raises(hf.StreamTrimmed) as caught:
            await anext(slow)
        assert caught.value.oldest == 550
    task.cancel()


async def test_a_reader_that_waits_on_a_trimmed_stream_goes_on(
    processes: Processes, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 10), ("trim", 10))
    readers = [
        client.read_stream("w", TOKENS, after=9),
        client.read_stream("w", TOKENS),
        client.read_stream("w", TOKENS, last=5),
    ]
    waits.forget()
    reading = [asyncio.create_task(anext(reader)) for reader in readers]
    await waits.on("stream", "w", "tokens", times=3)
    await handle.send(NEXT, ("write", 1))
    assert await within(5, asyncio.gather(*reading)) == [0, 0, 0]
    assert [reader.offset for reader in readers] == [10, 10, 10]


async def test_a_trimmed_stream_can_be_closed_and_is_closed(
    processes: Processes, waits: Waits, handle: hf.Handle[Any]
) -> None:
    client = await processes.client()
    await told(handle, waits, ("write", 5), ("trim", 5), ("close", 0), ("close", 0))
    reader = client.read_stream("w", TOKENS)
    assert await within(5, reader.collect()) == []
    assert reader.closed
    await client.trim_stream("w", TOKENS, before=5)
    assert reader.closed


async def test_trimming_works_in_pieces(
    processes: Processes,
    database: Connection,
    waits: Waits,
    handle: hf.Handle[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "TRIM_BATCH", 7)
    client = await processes.client()
    await told(handle, waits, ("write", 100))
    assert await client.trim_stream("w", TOKENS, before=60) == 60
    assert await offsets(client) == list(range(60, 100))
    assert await database.fetchval("select count(*) from holdfast.stream_values") == 40


async def test_what_cannot_be_trimmed_is_refused(processes: Processes, handle: hf.Handle[Any]) -> None:
    client = await processes.client()
    with pytest.raises(hf.WorkflowNotFound):
        await client.trim_stream("nobody", TOKENS, before=1)
    with pytest.raises(ValueError, match="before"):
        await client.trim_stream("w", TOKENS, before=-1)
    with pytest.raises(TypeError, match="before"):
        await client.trim_stream("w", TOKENS, before=True)
    with pytest.raises(hf.NotInWorkflow, match=r"Runtime\.trim_stream"):
        hf.trim_stream("tokens", 1)
    assert await client.trim_stream("w", "never written", before=5) == 0


@hf.workflow
async def trims_once() -> int:
    await TOKENS.write(*range(10))
    oldest = await hf.trim_stream(TOKENS, 4)
    await NEXT.recv()
    return oldest


async def test_w2_a_replayed_trim_does_no_io(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(trims_once)
    await first.start(trims_once(), id="w")
    await waits.on("message", "w", "next")
    await processes.leave(first)
    await database.execute("update holdfast.streams set oldest = 0")
    before = await rows(database, "steps", "stream_values", "streams")
    waits.forget()
    second = await processes.runtime(trims_once)
    await waits.on("message", "w", "next")
    assert second.statistics().writer.records == 1
    assert await rows(database, "steps", "stream_values", "streams") == before
    await second.send("w", None, NEXT)
    assert await second.handle("w").result() == 4


async def test_w2_a_crash_between_the_trimming_and_its_record(
    processes: Processes, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await processes.runtime(trims_once)
    killed = asyncio.Event()
    really = streams.trim_stream

    async def trim_and_die(*given: Any) -> int | None:  # noqa: ANN401
        trimmed = await really(*given)
        if not killed.is_set():
            first.executor.lost()
            killed.set()
        return trimmed

    monkeypatch.setattr(streams, "trim_stream", trim_and_die)
    await first.start(trims_once(), id="w")
    await within(5, killed.wait())
    await processes.leave(first)
    assert await database.fetchval("select count(*) from holdfast.stream_values") == 6
    assert await database.fetchval("select count(*) from holdfast.steps") == 1
    second = await processes.runtime(trims_once)
    await second.send("w", None, NEXT)
    assert await second.handle("w").result() == 4


async def test_w11_a_trim_that_finds_no_pool_any_more_is_no_error_of_the_workflow(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException] = []
    left = asyncio.Event()

    @hf.workflow(name="trims_and_catches")
    async def trims_and_catches() -> str:
        try:
            await TOKENS.trim(0)
        except BaseException as error:
            seen.append(error)
            left.set()
            raise
        return "trimmed"

    async def closed(*given: object) -> int:
        raise NotRunning("the connection pool is closed")

    with monkeypatch.context() as patched:
        patched.setattr(streams, "trim_stream", closed)
        first = await processes.runtime(trims_and_catches)
        await first.start(trims_and_catches(), id="w")
        await within(PATIENCE, left.wait())
        await processes.leave(first)
    assert not isinstance(seen[0], Exception | asyncio.CancelledError)
    second = await processes.runtime(trims_and_catches)
    assert await second.handle("w").result(PATIENCE) == "trimmed"


@hf.step
async def trim_in_step() -> int:
    await TOKENS.write(1, 2, 3)
    return await TOKENS.trim(2)


@hf.workflow
async def trims_in_step() -> int:
    return await trim_in_step()


async def test_trimming_in_a_step(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(trims_in_step)
    assert await rt.run(trims_in_step()) == 2
    assert await database.fetchval("select count(*) from holdfast.stream_values") == 1

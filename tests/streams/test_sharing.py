"""Many readers of one stream in one process: one look per batch, nothing kept for the slow [S7]."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

import holdfast as hf
from holdfast._engine.tails import WINDOW_BYTES, WINDOW_VALUES, Window
from holdfast._store.connection import Connection
from holdfast._store.looks import STREAM_BATCH, STREAM_BYTES, StreamNews, StreamValue
from holdfast.types import Status
from tests.processes import Processes, Waits, terminate, within

TOKENS = hf.Stream[Any]("tokens")
NEXT = hf.Topic[Any]("next")


@hf.workflow
async def mirror() -> None:
    async for value in NEXT:
        if value is None:
            return
        await TOKENS.write(*(value if isinstance(value, list) else [value]))


@hf.workflow
async def burst(count: int, size: int) -> None:
    for number in range(count):
        await TOKENS.write(f"{number:x>{size}}")


def waiting(client: hf.Client) -> int:
    return client.statistics().waiters.waiting


async def turns(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_s7_readers_that_wait_share_one_look_per_batch(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = [asyncio.create_task(client.read_stream("w", TOKENS).collect()) for _ in range(200)]
    await waits.on("stream", "w", "tokens", times=200)
    assert client.statistics().lookups.looks == 1
    for number in range(20):
        waits.forget()
        await handle.send(NEXT, number)
        await waits.on("stream", "w", "tokens", times=200)
        # One for each batch, and none to see that it was all.
        assert client.statistics().lookups.looks == 2 + number, (
            "one per batch, and none to see that it was all"
        )
    await handle.send(NEXT, None)
    assert await within(5, asyncio.gather(*reading)) == [list(range(20))] * 200
    assert client.statistics().lookups.looks <= 22


@pytest.mark.parametrize("seed", range(3))
async def test_s7_200_readers_of_mixed_speeds_cost_one_look_per_batch(
    processes: Processes, waits: Waits, seed: int
) -> None:
    chance = random.Random(seed)
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    length = 100

    async def read(pause: float, often: float) -> list[int]:
        seen = []
        chance = random.Random(pause)
        async for value in client.read_stream("w", TOKENS):
            seen.append(value)
            if chance.random() < often:
                await asyncio.sleep(pause)
        return seen

    speeds = [(chance.choice([0.0, 0.0, 0.001, 0.01]), chance.random() / 2) for number in range(200)]
    reading = [asyncio.create_task(read(pause, often)) for pause, often in speeds]
    await waits.on("stream", "w", "tokens", times=200)
    for number in range(length):
        await handle.send(NEXT, number)
    await handle.send(NEXT, None)
    assert await within(60, asyncio.gather(*reading)) == [list(range(length))] * 200
    # A write may ring while a look is on its way, and then there is one more to see what it was.
    assert client.statistics().lookups.looks <= 2 * length + 10


async def test_s7_a_reader_at_another_place_is_served_without_a_look(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, list(range(10)))
    fast, slow = client.read_stream("w", TOKENS), client.read_stream("w", TOKENS)
    assert [await anext(fast), await anext(slow)] == [0, 0]
    for number in range(10, 60):
        await handle.send(NEXT, number)
        while await anext(fast) < number:
            pass
    looks = client.statistics().lookups.looks
    assert [await anext(slow) for _ in range(59)] == list(range(1, 60))
    assert client.statistics().lookups.looks == looks


async def test_s7_a_reader_behind_the_window_reads_pages_of_its_own(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    fast, slow = client.read_stream("w", TOKENS), client.read_stream("w", TOKENS)
    await handle.send(NEXT, [0])
    assert [await anext(fast), await anext(slow)] == [0, 0]
    count = 4 * WINDOW_VALUES
    for start in range(1, count, 400):
        last = min(start + 399, count - 1)
        await handle.send(NEXT, list(range(start, last + 1)))
        while await anext(fast) < last:
            pass
    looks = client.statistics().lookups.looks
    assert [await anext(slow) for _ in range(count - 1)] == list(range(1, count))
    behind = (count - WINDOW_VALUES) // STREAM_BATCH
    assert client.statistics().lookups.looks - looks <= behind + 1


async def test_s7_a_slow_reader_delays_nobody_and_is_not_buffered_for(
    processes: Processes, waits: Waits
) -> None:
    """Readers that never read on, while 30 MiB pass by: what is kept stays within the window."""
    rt, client = await processes.runtime(burst), await processes.client()
    tracemalloc.start()
    try:
        handle = await rt.start(burst(60, 500_000), id="w")
        stuck = [client.read_stream("w", TOKENS) for _ in range(20)]
        for reader in stuck:
            await anext(reader)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        async with asyncio.timeout(20):
            seen = 0
            async for value in client.read_stream("w", TOKENS):
                assert len(value) == 500_000
                seen += 1
            assert seen == 60
        await handle.result()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < 3 * (WINDOW_BYTES + STREAM_BYTES)
    finally:
        tracemalloc.stop()
    for reader in stuck[:3]:
        assert len(await within(10, reader.collect())) == 59


async def test_s7_a_look_is_bounded_in_bytes_and_gives_one_value_at_least(
    processes: Processes, database: Connection
) -> None:
    rt, client = await processes.runtime(burst), await processes.client()
    await rt.run(burst(8, 600_000), id="w")
    reader = client.read_stream("w", TOKENS)
    await anext(reader)
    assert client.statistics().lookups.looks == 1
    assert len(await reader.collect()) == 7
    assert client.statistics().lookups.looks == 4, "two values of more than half a bound to each"


async def test_s7_10_000_readers(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    count = 10_000
    readers = [client.read_stream("w", TOKENS) for _ in range(count)]
    tracemalloc.start()
    reading = [asyncio.create_task(reader.collect()) for reader in readers[:1000]]
    await waits.on("stream", "w", "tokens", times=1000)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 1000 < 40_000
    reading += [asyncio.create_task(reader.collect()) for reader in readers[1000:]]
    await waits.on("stream", "w", "tokens", times=count)
    opened = client.statistics().lookups.looks
    assert opened == 2
    await handle.send(NEXT, [1, 2, 3])
    await turns(lambda: all(reader.offset == 2 for reader in readers))
    assert client.statistics().lookups.looks == opened + 1
    await handle.send(NEXT, None)
    assert await within(20, asyncio.gather(*reading)) == [[1, 2, 3]] * count
    assert client.statistics().lookups.looks <= opened + 2
    assert waiting(client) == 0
    assert len(client.engine.tails) == 0


async def test_s9_a_tail_goes_with_its_last_reader(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, [1, 2])
    one, other = client.read_stream("w", TOKENS), client.read_stream("w", TOKENS)
    assert [await anext(one), await anext(other)] == [1, 1]
    assert len(client.engine.tails) == 1
    assert client.statistics().waiters.keys == 2
    await one.aclose()
    assert len(client.engine.tails) == 1
    del other
    assert len(client.engine.tails) == 0
    assert client.statistics().waiters.keys == 0


async def test_n4_readers_that_share_look_once_after_a_reconnect(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = [asyncio.create_task(client.read_stream("w", TOKENS).collect()) for _ in range(50)]
    await waits.on("stream", "w", "tokens", times=50)
    looks = client.statistics().lookups.looks
    waits.forget()
    await terminate(database, "listener")
    await waits.on("stream", "w", "tokens", times=50)
    await waits.on("message", "w", "next")  # the other process hears again too
    assert client.statistics().lookups.looks == looks + 1
    async with processes.unheard(database):
        await handle.send(NEXT, 1)
        await waits.on("message", "w", "next", times=2)
    await handle.send(NEXT, None)
    assert await within(5, asyncio.gather(*reading)) == [[1]] * 50


async def test_s7_a_look_whose_asker_leaves_is_asked_by_another(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    tail = client.engine.tails.tail("w", "tokens")
    await handle.send(NEXT, 1)
    await anext(rt.read_stream("w", TOKENS))
    first = asyncio.create_task(tail.look(-1))
    await asyncio.sleep(0)
    others = [asyncio.create_task(tail.look(-1)) for _ in range(10)]
    await asyncio.sleep(0)
    first.cancel()
    others[3].cancel()
    found = await within(5, asyncio.gather(*others, return_exceptions=True))
    assert isinstance(found.pop(3), asyncio.CancelledError)
    assert [part.news.values[0].offset for part in found] == [0] * 9  # type: ignore[union-attr]


def page(first: int, count: int, size: int = 1) -> StreamNews:
    values = [StreamValue(first + n, b"x" * size, 1) for n in range(count)]
    return StreamNews(values, closed=False, status=Status.PENDING, length=first + count)


def offset_behind(window: Window, after: int) -> int | None:
    part = window.find(after)
    return None if part is None else part.news.values[part.begin].offset


def test_s7_the_window_carries_on_and_forgets_the_oldest() -> None:
    window = Window()
    assert offset_behind(window, -1) is None
    for start in range(0, 3 * WINDOW_VALUES, 50):
        window.add(page(start, 50))
    end = 3 * WINDOW_VALUES
    oldest = end - WINDOW_VALUES
    for after in range(-1, end + 10):
        expected = after + 1 if oldest <= after + 1 < end else None
        assert offset_behind(window, after) == expected


def test_s7_the_window_is_bounded_in_bytes_and_keeps_the_newest_page() -> None:
    window = Window()
    for number in range(10):
        window.add(page(number, 1, WINDOW_BYTES // 2))
    assert [offset_behind(window, after) for after in (6, 7, 8, 9)] == [None, 8, 9, None]
    window.add(page(10, 1, 5 * WINDOW_BYTES))
    assert [offset_behind(window, after) for after in (8, 9, 10)] == [None, 10, None]


def test_s7_pages_overlap_lie_behind_and_ahead() -> None:
    window = Window()
    window.add(page(10, 10))
    window.add(page(5, 3))  # older
    window.add(page(12, 8))  # known
    window.add(page(15, 10))  # half known
    assert [offset_behind(window, after) for after in (4, 8, 9, 19, 23, 24)] == [None, None, 10, 20, 24, None]
    window.add(page(100, 5))  # ahead: there would be a hole
    assert [offset_behind(window, after) for after in (9, 24, 99, 103)] == [None, None, 100, 104]

"""Which part of a stream is read: behind an offset, from the end, live or only what is there [S6]."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, terminate, within

TOKENS = hf.Stream[Any]("tokens")
NEXT = hf.Topic[Any]("next")


@hf.workflow
async def mirror() -> None:
    """Writes what it is sent, closes when it is sent "close", ends when it is sent None."""
    async for value in NEXT:
        if value is None:
            return
        if value == "close":
            await TOKENS.close()
        else:
            await TOKENS.write(*(value if isinstance(value, list) else [value]))


async def begun(processes: Processes, client: hf.Client, count: int) -> hf.Handle[None]:
    rt = await processes.runtime(mirror)
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, list(range(count)))
    async for value in client.read_stream("w", TOKENS):
        if value == count - 1:
            break
    return handle


async def following(reader: hf.Reader[Any]) -> Any:  # noqa: ANN401
    return await within(5, anext(reader))


@pytest.mark.parametrize("last", [0, 1, 3, 10, 11, 10_000])
async def test_s6_last_starts_so_many_values_before_the_end(processes: Processes, last: int) -> None:
    client = await processes.client()
    handle = await begun(processes, client, 10)
    reader = client.read_stream("w", TOKENS, last=last)
    for value in range(max(0, 10 - last), 10):
        assert await following(reader) == value
    waiting = asyncio.create_task(following(reader))
    if last == 0:
        while not client.statistics().waiters.waiting:
            await asyncio.sleep(0)
    await handle.send(NEXT, "new")
    assert await waiting == "new"
    assert reader.offset == 10
    await handle.send(NEXT, None)
    assert await within(5, reader.collect()) == []
    assert (reader.closed, reader.ended) == (False, True)


async def test_s6_last_of_a_long_stream_comes_in_pieces(processes: Processes) -> None:
    client = await processes.client()
    await begun(processes, client, 1800)
    reader = client.read_stream("w", TOKENS, last=1200, follow=False)
    assert await reader.collect() == list(range(600, 1800))


async def test_s6_last_of_an_empty_stream_waits_for_the_first_value(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reading = [asyncio.create_task(following(client.read_stream("w", TOKENS, last=k))) for k in (0, 5)]
    await waits.on("stream", "w", "tokens", times=2)
    await handle.send(NEXT, 1)
    assert await asyncio.gather(*reading) == [1, 1]


async def test_s6_without_following_it_stops_at_what_was_there(processes: Processes) -> None:
    client = await processes.client()
    handle = await begun(processes, client, 1200)
    reader = client.read_stream("w", TOKENS, follow=False)
    seen = [await anext(reader)]
    await handle.send(NEXT, ["late"] * 700)
    async for value in client.read_stream("w", TOKENS, after=1199):
        assert value == "late"
        break
    seen += await within(5, reader.collect())
    assert seen == list(range(1200)), "what came after the first look does not count"
    assert (reader.closed, reader.ended) == (False, False)
    assert client.statistics().waiters.waiting == 0


async def test_s6_without_following_nothing_is_waited_for(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    await rt.start(mirror(), id="w")
    for span in ({}, {"after": 7}, {"last": 3}, {"last": 0}):
        reader = client.read_stream("w", TOKENS, follow=False, **span)
        assert await within(5, reader.collect()) == []
        assert (reader.closed, reader.ended) == (False, False)
    with pytest.raises(hf.WorkflowNotFound):
        await client.read_stream("nobody", TOKENS, follow=False).collect()


@pytest.mark.parametrize("how", ["close", None])
async def test_s6_without_following_it_says_what_is_known(processes: Processes, how: str | None) -> None:
    client = await processes.client()
    handle = await begun(processes, client, 10)
    await handle.send(NEXT, how)
    assert await within(5, client.read_stream("w", TOKENS, after=9).collect()) == []
    for span, first in (({}, 0), ({"after": 3}, 4), ({"last": 2}, 8), ({"last": 0}, 10)):
        reader = client.read_stream("w", TOKENS, follow=False, **span)
        assert await reader.collect() == list(range(first, 10))
        assert (reader.closed, reader.ended) == (how == "close", True)


async def test_s6_items_carry_offset_and_attempt_from_anywhere(processes: Processes) -> None:
    client = await processes.client()
    await begun(processes, client, 5)
    async with client.read_stream("w", TOKENS, last=2, follow=False) as reader:
        items = [item async for item in reader.items()]
    assert [(item.value, item.offset, item.attempt) for item in items] == [(3, 3, 1), (4, 4, 1)]


@pytest.mark.parametrize(
    "wrong", [{"after": -2}, {"after": 2**70}, {"last": -1}, {"last": 2**70}, {"after": 0, "last": 0}]
)
async def test_s6_absurd_numbers_are_refused_before_any_io(
    processes: Processes, wrong: dict[str, Any]
) -> None:
    client = await processes.client()
    with pytest.raises(ValueError, match=r"after|last"):
        client.read_stream("w", "tokens", **wrong)
    with pytest.raises(ValueError, match=r"after|last"):
        client.handle("w").read("tokens", **wrong)
    assert client.statistics().lookups.looks == 0


@pytest.mark.parametrize("wrong", [{"after": "1"}, {"last": 1.5}, {"last": True}])
async def test_s6_what_is_no_number_is_refused(processes: Processes, wrong: dict[str, Any]) -> None:
    client = await processes.client()
    with pytest.raises(TypeError, match=r"how many values|offset"):
        client.read_stream("w", TOKENS, **wrong)


@pytest.mark.parametrize("seed", range(5))
async def test_s6_readers_that_reconnect_anywhere_lose_and_repeat_nothing(
    processes: Processes, database: Connection, seed: int
) -> None:
    """While values are written, readers leave after any number of them and go on in another process."""
    chance = random.Random(seed)
    rt = await processes.runtime(mirror)
    clients = [rt, await processes.client(), await processes.client()]
    handle = await rt.start(mirror(), id="w")
    length = 300

    async def write() -> None:
        written = 0
        while written < length:
            count = min(chance.choice([1, 1, 2, 7, 40]), length - written)
            await handle.send(NEXT, list(range(written, written + count)))
            written += count
            if chance.random() < 0.2:
                await terminate(database, chance.choice(["listener", "lookups"]))
        await handle.send(NEXT, None)

    async def read(chance: random.Random) -> list[tuple[int, Any]]:
        seen: list[tuple[int, Any]] = []
        while True:
            after = seen[-1][0] if seen else None
            follow = chance.random() < 0.7
            reader = chance.choice(clients).read_stream("w", TOKENS, after=after, follow=follow)
            most = chance.choice([1, 2, 5, 60, 1000])
            async for item in reader.items():
                seen.append((item.offset, item.value))
                most -= 1
                if not most:
                    break
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random() / 200)
            if reader.ended:
                return seen

    readers = [asyncio.create_task(read(random.Random(seed * 100 + n))) for n in range(12)]
    await write()
    for seen in await within(30, asyncio.gather(*readers)):
        assert seen == [(number, number) for number in range(length)]


async def test_s9_dropping_the_items_of_a_reader_frees_everything(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, [1, 2])
    items = client.read_stream("w", TOKENS).items()
    assert (await anext(items)).value == 1
    assert len(client.engine.tails) == 1
    del items
    assert client.statistics().waiters.waiting == 0
    assert client.statistics().waiters.keys == 0
    assert len(client.engine.tails) == 0


async def test_s9_a_wait_for_an_item_that_is_given_up_loses_nothing(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    items = client.read_stream("w", TOKENS).items()
    for number in range(3):
        waiting = asyncio.create_task(anext(items))
        await waits.on("stream", "w", "tokens", times=number + 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await handle.send(NEXT, number)
        assert await within(5, anext(items)) == hf.Item(value=number, offset=number, attempt=1)


async def test_s9_closing_a_waiting_reader_wakes_nobody_else(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    await rt.start(mirror(), id="w")
    readers = [client.read_stream("w", TOKENS) for _ in range(20)]
    reading = [asyncio.create_task(reader.collect()) for reader in readers]
    await waits.on("stream", "w", "tokens", times=20)
    wakes = client.statistics().waiters.wakes
    for number in range(19):
        await readers[number].aclose()
        assert await within(5, reading[number]) == []
    assert client.statistics().waiters.wakes - wakes == 19
    assert client.statistics().waiters.waiting == 1
    reading[19].cancel()


async def test_one_task_at_a_time_may_read(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    reader = client.read_stream("w", TOKENS)
    first = asyncio.create_task(following(reader))
    await waits.on("stream", "w", "tokens")
    with pytest.raises(RuntimeError, match="another task"):
        await anext(reader)
    await handle.send(NEXT, 1)
    assert await first == 1

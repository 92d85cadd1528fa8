"""Watching: the value now, then every change, never back, until nothing can follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, terminate, within

STATE = hf.Event[Any]("state")
NEXT = hf.Topic[Any]("next")


@hf.workflow
async def mirror() -> None:
    """Publishes what it is sent, until it is sent None."""
    async for value in NEXT:
        if value is None:
            return
        await STATE.set(value)
        await hf.set_event("seen", value)


async def following(watch: AsyncIterator[Any]) -> Any:  # noqa: ANN401
    return await within(5, anext(watch))


async def test_e5_the_value_now_and_then_every_change(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror())
    await handle.send(NEXT, 0)
    watch = client.handle(mirror, handle.id).watch(STATE)
    for number in range(5):
        assert await following(watch) == number
        await handle.send(NEXT, number + 1)
    assert await following(watch) == 5
    await handle.send(NEXT, None)
    with pytest.raises(StopAsyncIteration):
        await following(watch)


async def test_e5_a_slow_watcher_skips_to_the_latest_and_never_goes_back(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror())
    watch = client.watch_event(handle.id, STATE)
    await handle.send(NEXT, 0)
    assert await following(watch) == 0
    for number in range(1, 10):
        await handle.send(NEXT, number)
    async for value in client.watch_event(handle.id, "seen", int):
        if value == 9:
            break
    assert await following(watch) == 9
    await handle.send(NEXT, None)
    await handle.result()
    with pytest.raises(StopAsyncIteration):
        await following(watch)


async def test_e5_after_the_end_the_last_value_and_no_more(processes: Processes) -> None:
    rt = await processes.runtime(mirror)
    handle = await rt.start(mirror())
    for value in ("a", "b", None):
        await handle.send(NEXT, value)
    await handle.result()
    assert [value async for value in handle.watch(STATE)] == ["b"]
    assert [value async for value in handle.watch("never set")] == []


async def test_e5_it_ends_when_the_workflow_is_no_longer_active(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    watches = [asyncio.create_task(every(client.watch_event("w", STATE))) for _ in range(20)]
    await waits.on("event", "w", "state", times=20)
    await handle.cancel()
    assert await within(5, asyncio.gather(*watches)) == [[]] * 20


async def every(watch: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in watch]


async def test_e2_an_id_that_does_not_exist_yet_may_be_watched(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    watching = asyncio.create_task(every(client.watch_event("w", STATE)))
    await waits.on("event", "w", "state")
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, 1)
    await waits.on("event", "w", "state", times=2)
    await handle.send(NEXT, None)
    assert await within(5, watching) == [1]


async def test_e5_revisions_in_order_for_everybody(processes: Processes, database: Connection) -> None:
    rt, clients = await processes.runtime(mirror), [await processes.client() for _ in range(3)]
    handle = await rt.start(mirror(), id="w")
    watching = [asyncio.create_task(every(client.watch_event("w", STATE))) for client in clients * 5]
    for number in range(100):
        await handle.send(NEXT, number)
        if number % 25 == 0:
            await terminate(database, "listener")
    await handle.send(NEXT, None)
    for seen in await within(10, asyncio.gather(*watching)):
        assert seen == sorted(set(seen))
        assert seen[-1] == 99


async def test_n5_a_watcher_whose_listener_is_cut_sees_the_next_change(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    change = asyncio.create_task(following(client.watch_event("w", STATE)))
    await waits.on("event", "w", "state")
    async with processes.unheard(database):
        await handle.send(NEXT, 1)
        await waits.on("message", "w", "next", times=2)
    assert await within(2, change) == 1


async def test_n2_a_watcher_that_leaves_leaves_no_waiter(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    idle = client.statistics().waiters.waiting
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, 1)
    async for _ in client.watch_event("w", STATE):
        break
    assert client.statistics().waiters.waiting == idle
    waits.forget()
    change = asyncio.create_task(every(client.watch_event("w", STATE)))
    await waits.on("event", "w", "state")
    assert client.statistics().waiters.waiting == idle + 1
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert client.statistics().waiters.waiting == idle


async def test_e5_a_wait_for_a_change_that_is_given_up_misses_nothing(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    watch = client.watch_event("w", STATE)
    for number in range(3):
        waiting = asyncio.create_task(following(watch))
        await waits.on("event", "w", "state", times=number + 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await handle.send(NEXT, number)
        assert await following(watch) == number
    await handle.send(NEXT, None)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await following(watch)


async def test_e5_a_value_that_does_not_fit_is_told_and_passed(processes: Processes) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    watch = client.watch_event("w", "state", int)
    await handle.send(NEXT, "no number")
    with pytest.raises(hf.PayloadDecodeError):
        await following(watch)
    await handle.send(NEXT, 5)
    assert await following(watch) == 5


async def test_e5_one_task_at_a_time_may_watch(processes: Processes, waits: Waits) -> None:
    rt, client = await processes.runtime(mirror), await processes.client()
    handle = await rt.start(mirror(), id="w")
    watch = client.watch_event("w", STATE)
    waiting = asyncio.create_task(following(watch))
    await waits.on("event", "w", "state")
    with pytest.raises(RuntimeError, match="one task at a time may watch"):
        await anext(watch)
    await handle.send(NEXT, 1)
    assert await waiting == 1


@hf.step
async def follow(of: str) -> list[Any]:
    return [value async for value in STATE.watch(of)]


@hf.workflow
async def follower(of: str) -> list[Any]:
    return await follow(of)


async def test_e5_watching_in_a_step(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(mirror, follower)
    handle = await rt.start(mirror(), id="w")
    following = await rt.start(follower("w"))
    await waits.on("event", "w", "state")
    await handle.send(NEXT, 1)
    await waits.on("event", "w", "state", times=2)
    await handle.send(NEXT, None)
    assert await following.result() == [1]

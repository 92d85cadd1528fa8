"""Watching in workflow code: every value seen is recorded, and a replay sees the same [E3, E5]."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, rows, within
from tests.runtime.witness import journal

STATE = hf.Event[Any]("state")
SEEN = hf.Event[Any]("seen")
NEXT = hf.Topic[Any]("next")
GO = hf.Topic[Any]("go")


@hf.workflow
async def mirror() -> None:
    async for value in NEXT:
        if value == "end":
            return
        await STATE.set(value)


@hf.workflow
async def follows(of: str) -> list[Any]:
    seen = []
    async for value in STATE.watch(of):
        seen.append(value)
        await SEEN.set(value)
    await GO.recv()
    return seen


async def show(handle: hf.Handle[Any], follower: hf.Handle[Any], *values: object) -> None:
    """Sets one value after another, each once the one before has been seen."""
    for value in values:
        await handle.send(NEXT, value)
        async for seen in follower.watch(SEEN):
            if seen == value:
                break


async def test_e5_the_value_now_and_every_change_recorded(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(mirror, follows)
    handle = await rt.start(mirror(), id="w")
    follower = await rt.start(follows("w"), id="f")
    await show(handle, follower, 0, None, 1, 2)
    await handle.send(NEXT, "end")
    await follower.send(GO, None)
    assert await within(5, follower.result()) == [0, None, 1, 2]
    calls = [(kind, name) for _, kind, name in await journal(database, "f")]
    assert calls == [("watch_event", "state"), ("set_event", "seen")] * 4 + [
        ("watch_event", "state"),
        ("recv", "go"),
    ]


async def test_e3_a_replay_sees_the_same_without_io_and_goes_on(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(mirror, follows)
    handle = await first.start(mirror(), id="w")
    await first.start(follows("w"), id="f")
    await waits.on("event", "w", "state")
    for value in ("a", "b"):
        waits.forget()
        await handle.send(NEXT, value)
        await waits.on("event", "w", "state")
    await processes.leave(first)
    await database.execute("update holdfast.events set payload = '\"changed\"' where workflow_id = 'w'")
    before = await rows(database, "steps", "events")
    waits.forget()
    second = await processes.runtime(follows)
    await waits.on("event", "w", "state")
    assert second.statistics().writer.records == 1
    assert await rows(database, "steps", "events") == before
    third = await processes.runtime(mirror)
    await show(third.handle("w"), third.handle("f"), "c")
    await third.send("w", "end", NEXT)
    await third.send("f", None, GO)
    assert await within(5, third.handle("f").result()) == ["a", "b", "c"]


@hf.workflow
async def follows_slowly(of: str) -> list[Any]:
    watch = hf.watch_event(of, "state", int)
    seen = [await anext(watch)]
    await GO.recv()
    seen += [value async for value in watch]
    return seen


async def test_e5_a_slow_watcher_skips_to_the_latest(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(mirror, follows_slowly)
    handle = await rt.start(mirror(), id="w")
    await handle.send(NEXT, 0)
    follower = await rt.start(follows_slowly("w"), id="f")
    await waits.on("message", "f", "go")
    for value in (1, 2, 3, "end"):
        await handle.send(NEXT, value)
    await handle.result()
    await follower.send(GO, None)
    assert await within(5, follower.result()) == [0, 3]


@pytest.mark.parametrize("cut", [False, True], ids=["by notification", "with the listener cut"])
async def test_e5_a_watcher_is_woken(
    processes: Processes, database: Connection, waits: Waits, cut: bool
) -> None:
    setting, watching = await processes.runtime(mirror), await processes.runtime(follows)
    handle = await setting.start(mirror(), id="w")
    follower = await watching.start(follows("w"), id="f")
    await follower.send(GO, None)
    await waits.on("event", "w", "state")
    async with processes.unheard(database) if cut else nullcontext():
        await handle.send(NEXT, 1)
        await waits.on("message", "w", "next", times=2)
    assert await within(3, follower.get(SEEN)) == 1
    await handle.cancel()
    assert await within(3, follower.result()) == [1]


async def test_e2_an_id_that_does_not_exist_yet_may_be_watched(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(mirror, follows)
    follower = await rt.start(follows("w"), id="f")
    await waits.on("event", "w", "state")
    handle = await rt.start(mirror(), id="w")
    await show(handle, follower, 1)
    await handle.send(NEXT, "end")
    await follower.send(GO, None)
    assert await within(5, follower.result()) == [1]


async def test_w2_deaths_between_a_value_and_its_record(
    processes: Processes, points: Points, waits: Waits
) -> None:
    setting, client = await processes.runtime(mirror), await processes.client()
    handle = await setting.start(mirror(), id="w")
    follower = await client.start(follows("w"), id="f")
    sent = 0
    for death in range(4):
        rt = await processes.runtime(follows)
        killed = points.kill(rt, "set.before_commit", "after" if death % 2 else "before")
        while not killed.is_set():
            await handle.send(NEXT, sent)
            sent += 1
            await asyncio.sleep(0.01)
        await processes.leave(rt)
    await handle.send(NEXT, "end")
    await follower.send(GO, None)
    await processes.runtime(follows)
    seen = await within(10, follower.result())
    assert seen == sorted(set(seen))
    assert seen[-1] == sent - 1


@hf.workflow
async def two_at_once(of: str) -> list[str]:
    watch = STATE.watch(of)
    found = await asyncio.gather(anext(watch), anext(watch), return_exceptions=True)
    return [type(one).__name__ for one in found]


async def test_two_tasks_at_once_on_one_watch(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(mirror, two_at_once)
    handle = await rt.start(mirror(), id="w")
    waiting = await rt.start(two_at_once("w"))
    await waits.on("event", "w", "state")
    await handle.send(NEXT, 1)
    assert await within(5, waiting.result()) == ["int", "RuntimeError"]

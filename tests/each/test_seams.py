"""`each` where it meets deadlines of blocks and changes of code, live and in a replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Processes, Waits, within
from tests.runtime.witness import PATIENCE, journal, until

HOUR = 3600.0
BRIEF = 2.0
"""Seconds in which every machine commits what comes before the deadline; bodies of steps end in real time."""
GO = hf.Topic[str]("go")
Program = Callable[[], Awaitable[list[str]]]
programs: dict[str, Program] = {}


def program(fn: Program) -> Program:
    programs[fn.__name__] = fn
    return fn


@pytest.fixture
async def clock(dsn: str) -> AsyncIterator[DatabaseClock]:
    async with DatabaseClock(dsn) as clock:
        yield clock


@hf.step
async def work(item: int) -> int:
    if item < 0:
        await asyncio.sleep(1000)
    return item


@hf.workflow
async def helper(item: int) -> int:
    if item < 0:
        await GO.recv()
    return item


@hf.workflow
async def play(name: str) -> list[str]:
    seen = await programs[name]()
    seen.append(str(await work(100)))
    return [*seen, await GO.recv()]


def told(found: hf.Outcome[int, int]) -> str:
    return f"{found.item} {type(found.error).__name__ if found.error else found.value}"


@program
async def steps_end_with_the_block() -> list[str]:
    seen = []
    try:
        async with hf.timeout(BRIEF):
            async for found in hf.each(work, [1, -1, -2]):
                seen.append(told(found))  # noqa: PERF401 - what was seen before the deadline counts
    except TimeoutError:
        seen.append("late")
    return seen


@program
async def children_end_with_the_block() -> list[str]:
    seen = []
    try:
        async with hf.timeout(HOUR):
            async for found in hf.each(helper, [1, -1]):
                seen.append(told(found))  # noqa: PERF401 - what was seen before the deadline counts
    except TimeoutError:
        seen.append("late")
    return seen


@program
async def a_block_ends_the_waiting_for_items_begun_before_it() -> list[str]:
    items = hf.each(work, [1, -1])
    seen = [told(await anext(items))]
    try:
        async with hf.timeout(0.1):
            seen.append(told(await anext(items)))
    except TimeoutError:
        seen.append("late")
    return seen


@program
async def what_a_block_has_ended_is_an_error_outside_of_it() -> list[str]:
    items = hf.each(work, [1, -1, 2])
    seen = []
    try:
        async with hf.timeout(BRIEF):
            async for found in items:
                seen.append(told(found))  # noqa: PERF401 - what was seen before the deadline counts
    except TimeoutError:
        seen.append("late")
    seen += [told(found) async for found in items]
    return seen


@program
async def an_item_left_behind_does_not_expire_the_block() -> list[str]:
    seen = []
    async with hf.timeout(BRIEF):
        items = hf.each(work, [1, -1])
        seen.append(told(await anext(items)))
        await asyncio.gather(*items._running)  # the deadline ends the other one
    return seen


@hf.step
async def gives_up(item: int) -> int:
    raise asyncio.CancelledError


@program
async def a_body_that_cancels_itself() -> list[str]:
    return [told(found) async for found in hf.each(gives_up, [1, 2], limit=1)]


@program
async def patched_before_and_inside() -> list[str]:
    seen = [str(await hf.patched("new"))]
    async for found in hf.each(work, [1, 2], limit=1):
        seen += [told(found), str(await hf.patched("newer"))]
    return seen


EXPECTED = {
    "steps_end_with_the_block": ["1 1", "late"],
    "children_end_with_the_block": ["1 1", "late"],
    "a_block_ends_the_waiting_for_items_begun_before_it": ["1 1", "late"],
    "what_a_block_has_ended_is_an_error_outside_of_it": ["1 1", "2 2", "late", "-1 WaitTimeout"],
    "an_item_left_behind_does_not_expire_the_block": ["1 1"],
    "a_body_that_cancels_itself": ["1 RemoteError", "2 RemoteError"],
    "patched_before_and_inside": ["True", "1 1", "True", "2 2", "True"],
}


@pytest.mark.parametrize("name", programs)
async def test_w4a_w9_the_same_live_and_in_a_replay(
    processes: Processes, database: Connection, clock: DatabaseClock, waits: Waits, name: str
) -> None:
    rt = await processes.runtime(play, helper)
    await rt.start(play(name), id="a")
    await rt.start(play(name), id="b")
    if name == "children_end_with_the_block":
        await until(lambda: _handed_out(database), "the first items handed out")
        await clock.advance(HOUR)
    for workflow_id in "ab":
        await waits.on("message", workflow_id, "go")
    await rt.send("a", "end", GO)
    live = await within(PATIENCE, rt.handle(play, "a").result())
    await processes.leave(rt)
    again = await processes.runtime(play, helper)
    await again.send("b", "end", GO)
    replayed = await within(PATIENCE, again.handle(play, "b").result())
    assert replayed == live == [*EXPECTED[name], "100", "end"]


async def _handed_out(database: Connection) -> bool:
    """Have both been handed their first item?"""
    return all(["each" in [kind for _, kind, _ in await journal(database, of)] for of in "ab"])


async def test_w13_patched_and_each_go_on_in_the_middle(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(middle, helper)
    handle = await rt.start(middle(), id="a")
    await waits.on("message", "a/1#1", "go")
    await processes.leave(rt)
    again = await processes.runtime(middle, helper)
    await again.send("a/1#1", "end", GO)
    assert await within(PATIENCE, again.handle(middle, handle.id).result()) == ["1 1", "-1 -1"]


@hf.workflow
async def middle() -> list[str]:
    await hf.patched("new")
    return [told(found) async for found in hf.each(helper, [1, -1])]

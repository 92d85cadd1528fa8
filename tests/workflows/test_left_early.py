"""Async generators left early in workflow code are closed by the loop, and shift no step ids [W4]."""

from __future__ import annotations

import asyncio

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, within
from tests.runtime.witness import journal

GO = hf.Topic[str]("go")
STOP = hf.Topic[None]("stop")


@hf.step
async def say(word: str) -> str:
    return word


async def twice(word: str) -> str:
    await say(word)
    return await say(word)


@hf.workflow
async def leaves() -> list[str]:
    said = []
    async for word in GO:
        said.append(word)
        break
    said.append(await say("b"))
    said += await asyncio.gather(twice("c"), twice("d"))
    await STOP.recv()
    return said


async def test_w4_a_loop_that_is_left_early_replays(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(leaves)
    handle = await first.start(leaves(), id="w")
    await handle.send(GO, "a")
    await waits.on("message", "w", "stop")
    made = {step_id for step_id, _, _ in await journal(database, "w")}
    assert made == {"1", "2", "1.1", "1.2", "2.1", "2.2"}
    await processes.leave(first)
    second = await processes.runtime(leaves)
    await second.send("w", None, STOP)
    assert await within(5, second.handle("w").result()) == ["a", "b", "c", "d"]

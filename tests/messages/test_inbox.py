"""A loop over a topic that is left early leaves nothing behind that a replay would miss [W4]."""

from __future__ import annotations

import asyncio

import pytest

import holdfast as hf
from tests.processes import Processes, Waits

NUMBERS = hf.Topic[int]("number")
GO = hf.Topic[None]("go")


@hf.step
async def nothing() -> None:
    await asyncio.sleep(0.01)


async def branch() -> None:
    await nothing()
    await nothing()


@hf.workflow
async def leaves_early(kind: str) -> int:
    taken = 0
    for _ in range(2):
        if kind == "messages":
            async for number in NUMBERS:
                taken += number
                break
        else:
            async for request in NUMBERS.requests():
                taken += request.value
                break
        await nothing()
        await asyncio.gather(branch(), branch())
    await GO.recv()
    return taken


@pytest.mark.parametrize("kind", ["messages", "requests"])
async def test_w4_a_loop_that_is_left_early_gives_no_birth(
    processes: Processes, waits: Waits, kind: str
) -> None:
    first = await processes.runtime(leaves_early)
    await first.start(leaves_early(kind), id="w")
    for number in (1, 2):
        await first.send("w", number, NUMBERS)
    await waits.on("message", "w", "go")
    steps = [step.step_id for step in await first.steps("w")]
    assert sorted(steps) == sorted(
        ["1", "2", "1.1", "1.2", "2.1", "2.2", "3", "4", "3.1", "3.2", "4.1", "4.2"]
    )
    await processes.leave(first)
    second = await processes.runtime(leaves_early)
    await second.send("w", None, GO)
    assert await second.handle("w").result(20) == 3

"""A workflow that fans out, and a program that plays it until the n-th record kills it."""

from __future__ import annotations

import asyncio
import os
import random
import sys

import holdfast as hf
from holdfast import _observe
from tests.crash.story import Killer

ITEMS = 60


def note(file: str, text: str) -> None:
    """One line, in one write: it is there even if this process dies at once."""
    target = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(target, f"{text}\n".encode())
    os.close(target)


bodies = ""


@hf.step
async def work(item: int) -> int:
    here = hf.current()
    note(f"{bodies}.ran", f"{here.workflow_id} {here.step_id}")
    for _ in range(random.randrange(4)):
        await asyncio.sleep(random.choice([0, 0.001]))
    if item % 7 == 0:
        raise ValueError(f"seven divides {item}")
    return item * item


@hf.workflow
async def helper(item: int) -> int:
    return await work(item + 1)


@hf.workflow
async def fan() -> list[list[int]]:
    seen: list[list[int]] = []

    async def branch(number: int, what: hf.Step[[int], int] | hf.Workflow[[int], int]) -> None:
        async for found in hf.each(what, range(1, ITEMS + 1), limit=8):
            seen.append([number, found.item, -1 if found.error else found.value])
            note(f"{bodies}.seen", f"{os.getpid()} {number} {found.item}")
            if found.item % 5 == 0:
                await work(7 * (100 + found.item) + 1)

    await asyncio.gather(branch(1, work), branch(2, helper))
    return seen


async def play(dsn: str) -> list[list[int]]:
    """Runs it, or carries it on."""
    async with hf.Runtime(dsn, workflows=[fan, helper], settings=hf.Settings(heartbeat=0.05, lease=5)) as rt:
        return await (await rt.start(fan(), id="fan")).result(60)


if __name__ == "__main__":
    _, database, bodies, point, hit = sys.argv
    _observe.install(Killer(point, int(hit)))
    asyncio.run(play(database))

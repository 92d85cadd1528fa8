"""A workflow that reads another's stream and copies it, and a program that plays it: run it, kill it, run it
again.
"""

from __future__ import annotations

import asyncio
import sys

import holdfast as hf
from holdfast import _observe
from tests.crash.story import Killer

COUNT = 30
numbers = hf.Stream[int]("numbers")
doubled = hf.Stream[int]("doubled")
latest = hf.Event[int]("latest")


@hf.workflow
async def counts() -> None:
    for number in range(0, COUNT, 3):
        await numbers.write(number, number + 1, number + 2)
        await latest.set(number)
    await numbers.close()


@hf.workflow
async def doubles() -> int:
    async for number in numbers.read("counts"):
        await doubled.write(2 * number)
    await doubled.close()
    return [state async for state in latest.watch("counts")][-1]


async def play(dsn: str) -> list[int]:
    """Runs the story, or carries it on; what has come of it."""
    settings = hf.Settings(heartbeat=0.05, lease=5)
    async with hf.Runtime(dsn, workflows=[counts, doubles], settings=settings) as rt, asyncio.timeout(60):
        await rt.start(counts(), id="counts")
        handle = await rt.start(doubles(), id="doubles")
        last = await handle.result()
        return [*await handle.read(doubled).collect(), last]


if __name__ == "__main__":
    database, point, hit = sys.argv[1:]
    _observe.install(Killer(point, int(hit)))
    asyncio.run(play(database))

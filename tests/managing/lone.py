"""A process that runs what it finds, and kills itself at a point the n-th time that it gets there."""

from __future__ import annotations

import asyncio
import sys

import holdfast as hf
from holdfast import _observe
from tests.crash.story import Killer

log = hf.Stream[str]("log")
counts = hf.Event[int]("count")


@hf.step
async def mark(label: str) -> str:
    await log.write(f"in {label}")
    return label


@hf.workflow
async def story() -> list[str]:
    """Waits in the middle, and says in a stream what it does."""
    said = [await mark("one")]
    await log.write("after one")
    await counts.set(1)
    try:
        said.append(await hf.recv("go on"))
        await counts.set(2)
        said.append(await mark("two"))
    finally:
        await mark("tidy")
    await log.write("end")
    return said


async def main(dsn: str, point: str, hit: str) -> None:
    _observe.install(Killer(point, int(hit)))
    settings = hf.Settings(heartbeat=0.05, lease=5)
    async with hf.Runtime(dsn, workflows=[story], settings=settings):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

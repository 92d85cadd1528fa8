"""A process that runs one workflow half way, until it is killed."""

from __future__ import annotations

import asyncio
import sys

import holdfast as hf


@hf.step
async def mark(label: str) -> str:
    await hf.write_stream("marks", label)
    return label


@hf.workflow
async def halfway() -> str:
    said = await mark("a")
    await hf.recv("go on")
    return said + await mark("b")


async def main(dsn: str, workflow_id: str) -> None:
    settings = hf.Settings(heartbeat=0.1, lease=2)
    async with hf.Runtime(dsn, workflows=[halfway], settings=settings) as rt:
        await rt.run(halfway(), id=workflow_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

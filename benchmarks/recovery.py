"""How long after a kill -9 do a thousand workflows go on elsewhere?

A process runs them until each has recorded two steps, and is killed. `by a process that waits` counts from
the kill until all of them have recorded another step in a process that was there already; `by a process
that is started` from the moment when a new process enters its runtime. The floor is the same reads and
commits: take the rows, read the journals, commit a step of each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

import asyncpg
from _floor import NEW, STEP, floor
from _harness import Options, Row, at_once, cost, main, run_in_loop

import holdfast as hf

now = time.perf_counter


class Progress:
    """What the workflows of this process have reached."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.reached = 0
        self.gone_on = 0
        self.moved = asyncio.Event()

    async def until(self, *, reached: int = 0, gone_on: int = 0) -> None:
        while self.reached < reached or self.gone_on < gone_on:
            self.moved.clear()
            await self.moved.wait()


progress: Progress


@hf.step
async def step(number: int) -> int:
    return number


@hf.workflow
async def survivor(number: int) -> int:
    await step(number)
    await step(number)
    progress.reached += 1
    progress.moved.set()
    await progress.gate.wait()
    await step(number)
    progress.gone_on += 1
    progress.moved.set()
    return number


def say(fact: object) -> None:
    print(json.dumps(fact), flush=True)


async def play(role: str, dsn: str, count: int) -> None:
    """One of the processes."""
    global progress
    progress = Progress()
    if role != "victim":
        progress.gate.set()
    begun = now()
    async with hf.Runtime(dsn, workflows=[survivor]) as runtime:
        if role == "victim":
            await at_once(500, count, lambda number: runtime.start(survivor(number)))
            await progress.until(reached=count)
        else:
            say("ready")
            await progress.until(gone_on=count)
        say([begun, now()])
        if role == "victim":
            await asyncio.Event().wait()


class Other:
    """Another process of this benchmark."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def begin(cls, role: str, dsn: str, count: int) -> Other:
        given = json.dumps([role, dsn, count, "--uvloop" in sys.argv])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # the survivor logs that it takes over
            env={**os.environ, "RECOVERY": given},
        )
        return cls(process)

    async def hear(self) -> list[float]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        found: list[float] = json.loads(line)
        return found

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


async def by_one_that_waits(dsn: str, count: int, patience: float) -> float:
    victim = await Other.begin("victim", dsn, count)
    standby: Other | None = None
    try:
        await victim.hear()
        standby = await Other.begin("standby", dsn, count)
        await standby.hear()
        await asyncio.sleep(min(1.5, patience / 5))  # it has looked around, and found everybody alive
        killed = now()
        await victim.kill()
        try:
            return (await asyncio.wait_for(standby.hear(), patience))[1] - killed
        except TimeoutError:
            return patience  # it has not happened at all
    finally:
        await victim.kill()
        if standby is not None:
            await standby.kill()


async def by_one_that_starts(dsn: str, count: int) -> float:
    victim = await Other.begin("victim", dsn, count)
    successor: Other | None = None
    try:
        await victim.hear()
        await victim.kill()
        successor = await Other.begin("successor", dsn, count)
        await successor.hear()
        begun, ended = await successor.hear()
        return ended - begun
    finally:
        await victim.kill()
        if successor is not None:
            await successor.kill()


async def floor_recovery(dsn: str, count: int) -> float:
    connection = await asyncpg.connect(dsn)
    async with floor(dsn) as writer:
        ids = [f"w{number}" for number in range(count)]
        for place in ("0", "1"):
            await asyncio.gather(*(writer.submit(STEP, each, place, "step", b"1") for each in ids))
        await asyncio.gather(*(writer.submit(NEW, each, "survivor", b"1") for each in ids))
        begun = now()
        taken = await connection.fetch(
            "update floor.workflows set status = 1 where status = 1 returning id, input"
        )
        journals = await connection.fetch(
            "select workflow_id, step_id, name, output from floor.steps where workflow_id = any($1)",
            [row[0] for row in taken],
        )
        assert len(journals) == 2 * count
        await asyncio.gather(*(writer.submit(STEP, row[0], "2", "step", b"1") for row in taken))
        took = now() - begun
    await connection.close()
    return took


async def measure(dsn: str, options: Options) -> Sequence[Row]:
    count, patience = options.pick(1000, 1000, 5), options.pick(15, 15, 1)
    waits = cost(f"{count:,} taken over by a process that waits", "s", 1.0)
    starts = cost(f"{count:,} taken over by a process that is started", "s", 1.0)
    for _ in range(options.pick(3, 1, 1)):
        raw = await floor_recovery(dsn, count)
        waits.floors.append(raw)
        starts.floors.append(raw)
        waits.samples.append(await by_one_that_waits(dsn, count, patience))
        starts.samples.append(await by_one_that_starts(dsn, count))
    return [waits, starts]


if __name__ == "__main__":
    if given := os.environ.get("RECOVERY"):
        role, dsn, count, uvloop = json.loads(given)
        run_in_loop(play(role, dsn, count), uvloop=uvloop)
    else:
        main("How long after a kill -9 do a thousand workflows go on?", measure)

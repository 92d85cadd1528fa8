"""How many durable steps and workflows a second does one process do, alone, a hundred and a thousand at once?

A workflow is started and its result awaited, `Runtime.run`, by so many callers at once. The floor makes the
same commits.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from _floor import Floor, floor, workflow
from _harness import Options, Row, at_once, in_turns, main, rate

import holdfast as hf

STEPS = 10


@hf.step
async def step(number: int) -> int:
    return number


@hf.workflow
async def work(number: int) -> int:
    for turn in range(STEPS):
        await step(turn)
    return number


@hf.workflow
async def nothing(number: int) -> int:
    return number


class Case:
    """So many workflows at once, with or without steps; one row."""

    def __init__(self, row: Row, together: int, count: int, steps: int) -> None:
        self.row = row
        self.together = together
        self.count = count
        self.steps = steps

    async def run(self, runtime: hf.Runtime) -> None:
        call = work if self.steps else nothing
        self.row.samples.append(await self._time(lambda number: runtime.run(call(number))))

    async def run_floor(self, writer: Floor) -> None:
        self.row.floors.append(await self._time(lambda number: workflow(writer, number, self.steps)))

    async def _time(self, one: Callable[[int], Awaitable[object]]) -> float:
        begun = time.perf_counter()
        await at_once(self.together, self.count, one)
        return self.count * (self.steps or 1) / (time.perf_counter() - begun)


def cases(options: Options) -> list[Case]:
    aims = {1: None, 100: None, 1000: 15_000.0}
    counts = {1: (30, 20, 2), 100: (800, 500, 10), 1000: (1500, 1200, 20)}
    found = [
        Case(rate(f"{STEPS} steps each, {n} at once", "steps/s", aims[n]), n, options.pick(*count), STEPS)
        for n, count in counts.items()
    ]
    aims = {1: None, 100: None, 1000: 6_000.0}
    counts = {1: (100, 80, 2), 100: (2000, 1500, 10), 1000: (4000, 3000, 20)}
    return found + [
        Case(rate(f"no steps, {n} at once", "workflows/s", aims[n]), n, options.pick(*count), 0)
        for n, count in counts.items()
    ]


async def measure(dsn: str, options: Options) -> Sequence[Row]:
    found = cases(options)
    async with hf.Runtime(dsn, workflows=[work, nothing]) as runtime, floor(dsn) as writer:
        for case in found:
            await case.run(runtime)  # to warm up: plans, caches, connections
            await case.run_floor(writer)
            case.row.samples.clear()
            case.row.floors.clear()
        for case in found:
            await in_turns(options.pick(5, 3, 1), partial(case.run, runtime), partial(case.run_floor, writer))
    return [case.row for case in found]


if __name__ == "__main__":
    main("How many durable steps and workflows a second?", measure)

"""A workflow that waits for one of several things in every way there is, and a program that plays it.

As in `story`, the tables must in the end hold what an undisturbed run leaves there.
"""

from __future__ import annotations

import contextlib
from typing import Any

import holdfast as hf
from tests.crash.story import note, serve

RACE = "race"
words = hf.Topic[str]("words")
numbers = hf.Topic[int]("numbers")
never = hf.Topic[str]("never")
said = hf.Event[str]("said")


@hf.step
async def double(bodies: str, x: int) -> int:
    note(bodies)
    return 2 * x


@hf.workflow
async def square(bodies: str, x: int) -> int:
    return await double(bodies, x) * x // 2


@hf.workflow
async def race(bodies: str) -> list[Any]:
    me = hf.current().workflow_id
    got: list[Any] = [await hf.first(words.recv(), hf.sleep(3600))]
    got.append(await hf.first(never.recv(), square(bodies, 4)))
    got.append(await hf.first(never.recv(), double(bodies, 3)))
    await words.send(me, "one")
    await numbers.send(me, 2)
    await words.send(me, "three")
    got.extend([await hf.recv((numbers, words)), await hf.recv((numbers, words))])
    got.append(await hf.first(never.recv(), numbers.recv(), words.recv()))
    try:
        async with hf.timeout(0.02):
            await said.set("begun")
            await never.recv()
    except TimeoutError:
        await said.set("late")
    async with hf.timeout(600):
        got.append(await double(bodies, 5))
        try:
            async with hf.timeout(0.01):
                await hf.first(never.recv(), numbers.recv())
        except TimeoutError:
            got.append("late")
    got.append(await hf.first(never.recv(), timeout=0.01))
    return [*got, await words.recv(timeout=0, default="empty")]


RESULT = [
    *[[0, "go"], [1, 16], [1, 6], "one", 2, [2, "three"], 10, "late", None],
    "empty",
]


async def play(dsn: str, bodies: str) -> list[Any]:
    """Runs the race, or carries it on."""
    settings = hf.Settings(heartbeat=0.05, lease=5)
    async with hf.Runtime(dsn, workflows=[race, square], settings=settings) as rt, hf.Client(dsn) as client:
        handle = await rt.start(race(bodies), id=RACE)
        with contextlib.suppress(hf.WorkflowFinished):
            await client.send(RACE, "go", words, key="go")
        return await handle.result(timeout=30)


if __name__ == "__main__":
    serve(play)

"""A workflow that does everything there is to do, and a program that plays it: run it, kill it, run it again.

Whatever happens, the tables must in the end hold what an undisturbed run leaves there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import holdfast as hf
from holdfast import _observe
from holdfast._store.connection import Connection

STORY = "story"
inbox = hf.Topic[str]("inbox")
orders = hf.Topic[int]("orders")
shouts = hf.Topic[str]("shouts")
news = hf.Event[int]("news")
answer = hf.Event[int]("answer")
log = hf.Stream[str]("log")
prices = hf.Topic[int, str]("prices")


def note(bodies: str) -> None:
    """Tells the checker that the body of this step runs."""
    here = hf.current()
    file = os.open(bodies, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{here.workflow_id} {here.step_id}\n".encode())
    os.close(file)


@hf.step
async def double(bodies: str, x: int) -> int:
    note(bodies)
    return 2 * x


@hf.step
def triple(bodies: str, x: int) -> int:
    note(bodies)
    return 3 * x


@hf.step(attempts=2, wait_initial=0.001, wait_jitter=0)
async def fail(bodies: str) -> None:
    note(bodies)
    raise ValueError("as always")


@hf.transaction
async def book(connection: Connection, bodies: str, x: int) -> int:
    note(bodies)
    await connection.execute("insert into public.booked values ($1)", x)
    return x


@hf.workflow
async def helper(bodies: str, parent: str) -> int:
    order = await orders.recv()
    await answer.set(await double(bodies, order))
    await inbox.send(parent, "done")
    return order


@hf.workflow
async def square(bodies: str, x: int) -> int:
    return await double(bodies, x) * x


@hf.workflow
async def clerk(bodies: str) -> int:
    total = 0
    async for request in prices.requests():
        total += await double(bodies, request.value)
        if request.value == 0:
            await request.reject("that is all")
            break
        await request.reply(f"{total} in all")
    return total


async def branch(bodies: str, number: int) -> int:
    value = await double(bodies, number)
    await hf.send(hf.current().workflow_id, value, f"branch {number}")
    return int(await hf.recv(f"branch {number}")) + await triple(bodies, number)


@hf.workflow
async def story(bodies: str) -> list[Any]:
    me = hf.current().workflow_id
    first = await double(bodies, 1)
    await news.set(first)
    await log.write("a", "b")
    await hf.uuid()
    handle = await hf.start(helper(bodies, me))
    await orders.send(handle.id, 5)
    reply = await inbox.recv(timeout=60)
    shouted = await shouts.recv()
    seen = await answer.get(handle.id, timeout=60)
    await book(bodies, 7)
    try:
        await fail(bodies)
    except hf.StepFailed as error:
        await log.write(f"failed {error.attempts} times")
    await hf.sleep(0.01)
    await news.set(9)
    branches = await asyncio.gather(branch(bodies, 1), branch(bodies, 2))
    squared = await square(bodies, 4)
    assistant = await hf.start(clerk(bodies))
    priced = [await prices.ask(assistant.id, 3), await prices.ask(assistant.id, 4, timeout=60)]
    try:
        await prices.ask(assistant.id, 0)
    except hf.RequestRejected as error:
        priced.append(str(error))
    await log.close()
    try:
        await log.write("too late")
    except hf.StreamClosed:
        await news.set(10)
    # Nobody it has started is left running: what a snapshot of the tables shows is the end of all.
    ended = [await handle.result(), await assistant.result()]
    return [first, reply, shouted, seen, branches, squared, priced, *ended]


RESULT = [2, "done", "hello", 10, [5, 10], 32, ["6 in all", "14 in all", "that is all"], 5, 14, 18]
WORKFLOWS = (story, helper, square, clerk)


async def play(dsn: str, bodies: str) -> list[Any]:
    """Runs the story, or carries it on: what is done twice here has an identity, so that it happens once."""
    settings = hf.Settings(heartbeat=0.05, lease=5)
    runtime = hf.Runtime(dsn, workflows=WORKFLOWS, settings=settings)
    async with runtime as rt, hf.Client(dsn) as client:
        handle = await client.start(story(bodies), id=STORY)
        aside = await rt.start(square(bodies, 3), id="aside")
        # An earlier player may have sent it, and the story have come to its end since.
        with contextlib.suppress(hf.WorkflowFinished):
            await handle.send(shouts, "hello", key="hello")
        return [*await handle.result(timeout=30), await aside.result(timeout=30)]


class Killer:
    """Kills this process at a point, the n-th time that it gets there."""

    def __init__(self, name: str, hit: int) -> None:
        self.name = name
        self.hits_left = hit

    def __call__(self, name: str) -> None:
        if name == self.name:
            self.hits_left -= 1
            if not self.hits_left:
                os.kill(os.getpid(), signal.SIGKILL)


Play = Callable[[str, str], Coroutine[Any, Any, object]]


def serve(play: Play) -> None:
    """Plays a story in a child for every line that comes, and prints how the child has ended."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _play_and_exit(play, *line.split())
        _, state = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(state), flush=True)


def _play_and_exit(play: Play, database: str, bodies: str, at: str, hit: str) -> None:
    code = 1
    try:
        _observe.install(Killer(at, int(hit)))
        asyncio.run(play(database, bodies))
        code = 0
    finally:
        traceback.print_exc()
        os._exit(code)


if __name__ == "__main__":
    serve(play)

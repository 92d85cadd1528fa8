"""The workflows that real processes run in tests, by part; and the program that forks a process for one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import traceback
from typing import Any

import holdfast as hf
from holdfast import _observe
from tests.crash.story import Killer

Workflow = hf.Workflow[..., Any]


@hf.step
async def say(label: str) -> str:
    return label


# Workflows that take their process down


@hf.workflow
async def poison(recorded: bool) -> None:
    if recorded:
        await say("recorded before it kills")
    os._exit(9)


@hf.workflow(max_recoveries=3)
async def jam(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - it blocks the event loop, and so the heartbeat


@hf.workflow
async def one_record_per_life() -> int:
    """Gets one record further in each life, and then kills."""
    for number in range(12):
        known = len(hf.current().workflow_id) + number
        if await say(str(known)) and not await _known(number):
            os._exit(9)
    return 12


async def _known(number: int) -> bool:
    """Was this call recorded before this life began? Looks behind the scenes, as no workflow should."""
    from holdfast._run.context import current_branch

    return str(number + 1) in current_branch("known", "").run.journal


@hf.workflow
async def patient(topic: str) -> str:
    return str(await hf.recv(topic))


@hf.workflow
async def busy(rounds: int) -> int:
    for number in range(rounds):
        await say(str(number))
        await hf.sleep(0.05)
    return rounds


# Families over several processes


async def _linger(child: hf.Call[str] | None) -> str:
    try:
        await hf.set_event("begun", True)
        if child is not None:
            await child
        await hf.recv("never")
    except asyncio.CancelledError:
        await hf.set_event("cancelled at", time.time())
        raise
    return "not cancelled"


@hf.workflow
async def grandparent() -> str:
    return await _linger(hf.WorkflowRef[[], str]("parent")())


@hf.workflow
async def parent() -> str:
    return await _linger(hf.WorkflowRef[[], str]("child")())


@hf.workflow
async def child() -> str:
    return await _linger(None)


@hf.workflow
async def tidy() -> None:
    """Cleans up until it is told that it is tidy."""
    try:
        await hf.set_event("begun", True)
        await hf.recv("never")
    finally:
        await hf.recv("tidied")


@hf.workflow
async def breeder() -> None:
    """Starts children without end."""
    reference = hf.WorkflowRef[[], str]("child")
    while True:
        await hf.start(reference())


# A workflow that goes on and on

inbox = hf.Topic[int]("in")
taken = hf.Stream[list[int]]("taken")


@hf.workflow
async def relay(generation: int, last: int) -> int:
    """Takes a message in each execution, and tells in which."""
    number = await inbox.recv()
    await taken.write([generation, number])
    await say(str(number))
    if number != last:
        hf.continue_as(relay(generation + 1, last))
    return generation


# Versions of one workflow


@hf.workflow(name="changing")
async def original() -> str:
    said = await say("a")
    said += await say("b")
    return said + str(await hf.recv("go on"))


@hf.step
async def shout(label: str) -> str:
    return label.upper()


@hf.workflow(name="changing")
async def renamed() -> str:
    said = await say("a")
    said += await shout("b")
    return said + str(await hf.recv("go on"))


@hf.workflow(name="changing")
async def moved() -> str:
    said = str(await hf.recv("go on", timeout=60))
    said += await say("a")
    return said + await say("b")


@hf.workflow(name="changing")
async def removed() -> str:
    return await say("a")


@hf.workflow(name="changing")
async def guarded() -> str:
    said = await say("a")
    said += await (shout("b") if await hf.patched("louder") else say("b"))
    return said + str(await hf.recv("go on"))


PARTS: dict[str, list[Workflow]] = {
    "poison": [poison, patient, busy],
    "jam": [jam, patient, busy],
    "records": [one_record_per_life],
    "patient": [patient],
    "grandparent": [grandparent],
    "parent": [parent],
    "child": [child],
    "family": [grandparent, parent, child],
    "tidy": [tidy],
    "breeder": [breeder],
    "relay": [relay],
    "original": [original],
    "renamed": [renamed],
    "moved": [moved],
    "removed": [removed],
    "guarded": [guarded],
}


async def play(dsn: str, part: str, heartbeat: str, lease: str, point: str, hit: str) -> None:
    """Runs the workflows of a part until SIGTERM, or until the n-th hit of a point kills it."""
    _observe.install(Killer(point, int(hit)))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    settings = hf.Settings(heartbeat=float(heartbeat), lease=float(lease))
    async with hf.Runtime(dsn, workflows=PARTS[part], settings=settings, executor_name=part):
        _tell("ready", os.getpid())
        await over.wait()


def serve() -> None:
    """Forks a process for every line that comes; tells when it is made, ready and gone."""
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            _play_and_exit(*line.split())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _reap(*_: object) -> None:
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell("gone", ended[0], os.waitstatus_to_exitcode(ended[1]))
    except ChildProcessError:
        pass


def _play_and_exit(*about: str) -> None:
    code = 1
    try:
        _tell("made", os.getpid())
        asyncio.run(play(*about))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    serve()

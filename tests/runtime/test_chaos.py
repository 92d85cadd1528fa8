"""Random programs under random faults: in the end the tables hold what an undisturbed run leaves there
[W2, W4, W8, W11, W13, W14].
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.plugin import MakeDatabase
from tests.processes import Processes, connect, terminate
from tests.runtime.witness import Snapshot, fence, quick, snapshot

latency = random.Random(0)


@hf.step
async def echo(label: str) -> str:
    for _ in range(latency.randrange(3)):
        await asyncio.sleep(latency.choice([0, 0.001, 0.003]))
    return label


@hf.workflow
async def leaf(label: str) -> str:
    await hf.set_event("leaf", label)
    return await echo(label)


CALLS = ["step", "step", "talk", "set", "get", "write", "child", "value", "sleep", "gather", "group"]


@hf.workflow
async def program(seed: int) -> list[Any]:
    return await branch(seed, 0, "b")


async def branch(seed: int, depth: int, name: str) -> list[Any]:
    """A line of calls, and of branches, that follows from its seed."""
    me = hf.current().workflow_id
    chance = random.Random(seed)
    said: list[Any] = []
    for number in range(chance.randrange(3, 7)):
        label = f"{name}.{number}"
        call = chance.choice(CALLS[: -2 if depth == 2 else None])
        seeds = [chance.randrange(10**9) for _ in range(chance.randrange(2, 4))]
        branches = [branch(found, depth + 1, f"{label}.{place}") for place, found in enumerate(seeds)]
        if call == "gather":
            said += await asyncio.gather(*branches)
            continue
        if call == "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(found) for found in branches]
            said += [task.result() for task in tasks]
            continue
        for unused in branches:
            unused.close()
        match call:
            case "step":
                said.append(await echo(label))
            case "talk":
                await hf.send(me, label, name)
                said.append(await hf.recv(name, timeout=60))
            case "set":
                await hf.set_event(name, label)
            case "get":
                await hf.set_event(label, number)
                said.append(await hf.get_event(me, label, timeout=60))
            case "write":
                await hf.write_stream(name, label, number)
            case "child":
                said.append(await leaf(label))
            case "value":
                await hf.uuid()
            case "sleep":
                await hf.sleep(chance.random() / 100)
    return said


async def play(processes: Processes, dsn: str, seeds: range, faults: random.Random | None) -> Snapshot:
    """Runs a program for each seed to its end; what it leaves in the tables."""

    async def enter() -> hf.Runtime:
        return await processes.runtime(program, leaf, dsn=dsn, settings=quick())

    database = await connect(dsn)
    try:
        rt = await enter()
        for seed in seeds:
            await rt.start(program(seed), id=f"p{seed}")
        for _ in range(8 if faults else 0):
            assert faults is not None
            await _progress(database, faults.randrange(5, 60))
            match faults.choice(["fence", "terminate", "leave", "leave", "fence"]):
                case "fence" if rt.executor.lease.executor is not None:
                    await fence(database, rt)
                case "leave":
                    await processes.leave(rt)
                    rt = await enter()
                case _:
                    await terminate(database, "")
        for seed in seeds:
            await rt.handle(program, f"p{seed}").result(timeout=30)
        await processes.leave(rt)
        return await snapshot(database)
    finally:
        await database.close()


async def _progress(database: Connection, calls: int) -> None:
    """Returns when so many more calls have been recorded, or everything has ended."""
    recorded = "select count(*) from holdfast.steps where finished_at is not null"
    wanted = await database.fetchval(recorded) + calls
    async with asyncio.timeout(30):
        while await database.fetchval(recorded) < wanted:
            if not await database.fetchval("select exists (select from holdfast.workflows where status < 3)"):
                return
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("seed", range(4))
async def test_w2_w4_w14_random_programs_under_random_faults_leave_an_exact_history(
    processes: Processes, dsn: str, holdfast_database: MakeDatabase, seed: int
) -> None:
    seeds = range(10 * seed, 10 * seed + 10)
    expected = await play(processes, holdfast_database(), seeds, None)
    found = await play(processes, dsn, seeds, random.Random(seed))
    for name, rows in expected.items():
        assert found[name] == rows, name

"""kill -9 of whoever carries on what was resumed or forked: the history is exact [W12, W13]."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.managing.lone import counts, log, story
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, journal, quick

ROOT = Path(__file__).parents[2]
POINTS = [
    ("recv.before_claim", 1),
    ("set.before_commit", 1),
    ("set.after_commit", 1),
    ("step.before_commit", 1),
    ("step.after_commit", 1),
    ("step.after_commit", 2),
    ("finish.before_commit", 1),
]
"""Each is passed by the part of the story behind the message."""


async def killed_at(dsn: str, point: str, hit: int) -> int:
    """Runs what it finds in a process of its own until that dies; its exit code."""
    words = [sys.executable, "-m", "tests.managing.lone", dsn, point, str(hit)]
    process = await asyncio.create_subprocess_exec(*words, cwd=ROOT)
    async with asyncio.timeout(60):
        return await process.wait()


async def check(database: Connection, client: hf.Client, workflow_id: str) -> None:
    """As if nobody had died, but for the values of steps that were tried again."""
    assert [entry[1:] for entry in await journal(database, workflow_id)] == [
        ("step", "mark"),
        ("write_stream", "log"),
        ("set_event", "count"),
        ("recv", "go on"),
        ("set_event", "count"),
        ("step", "mark"),
        ("step", "mark"),
        ("write_stream", "log"),
    ]
    assert await client.get_events(workflow_id, history=True) == {"count": [(1, 1), (2, 2)]}
    items = [item async for item in client.read_stream(workflow_id, log).items()]
    assert [item.offset for item in items] == list(range(len(items)))
    values = [item.value for item in items]
    assert values[:2] == ["in one", "after one"]
    assert values[-1] == "end"
    assert [value for value in values if not value.startswith("in ")] == ["after one", "end"]


@pytest.mark.parametrize(("point", "hit"), POINTS)
@pytest.mark.parametrize("how", ["resume", "fork"])
async def test_w12_w13_killed_while_it_carries_on(
    processes: Processes, database: Connection, dsn: str, waits: Waits, point: str, hit: int, how: str
) -> None:
    first = await processes.runtime(story, settings=quick())
    handle = await first.start(story(), id="one")
    await waits.on("message", "one", "go on")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    await processes.leave(first)
    client = await processes.client()
    if how == "resume":
        await client.resume("one")
    else:
        handle = await client.fork("one", from_step="4", id="two")
    await client.send(handle.id, "now", "go on")
    assert await killed_at(dsn, point, hit) == -9
    rt = await processes.runtime(story, settings=quick())
    assert await rt.handle(story, handle.id).result(PATIENCE) == ["one", "now", "two"]
    await check(database, rt, handle.id)
    assert await rt.handle("one").get(counts) == (2 if how == "resume" else 1)

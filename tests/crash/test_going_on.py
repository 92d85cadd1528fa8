"""SIGKILL where an execution goes on as another, where a change of code is recorded, and where a workflow is
passed on: whoever carries it on leaves an exact history [W2, W5, W13].
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.crash.conftest import KILLED
from tests.processes import Processes
from tests.runtime.cast import guarded, inbox, original, relay, taken
from tests.runtime.troupe import Actor, Troupe, troupe
from tests.runtime.witness import PATIENCE, journal, state, until

CONTINUE = ("continue.before_commit", "continue.after_commit")
PATCH = ("patched.before_commit",)
PARK = ("park.before_commit", "park.after_commit")
GOING_ON = {*CONTINUE, *PATCH, *PARK}
WRITER = ("writer.before_commit", "writer.after_commit")
LAST = 6
"""The execution in which the relay ends."""


@pytest.fixture
async def actors() -> AsyncIterator[Troupe]:
    async with troupe() as made:
        yield made


async def carry_on(actors: Troupe, dsn: str, part: str, dying: Actor) -> None:
    """Somebody else comes when the first has died."""
    await dying.died()
    assert dying.code == KILLED
    await actors.hire(dsn, part)


@pytest.mark.parametrize("point", CONTINUE + WRITER)
@pytest.mark.parametrize("hit", [1, 2, 4, 6])
async def test_w2_killed_while_it_goes_on_no_execution_is_left_out_and_none_comes_twice(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, point: str, hit: int
) -> None:
    client = await processes.client()
    handle = await client.start(relay(0, LAST), id="one")
    for number in range(LAST + 1):
        await handle.send(inbox, number)
    first = await actors.hire(dsn, "relay", point=point, hit=hit if point in CONTINUE else 2 + 3 * hit)
    carrying = asyncio.create_task(carry_on(actors, dsn, "relay", first))
    assert await handle.result(PATIENCE) == LAST
    await carrying
    assert await handle.read(taken).collect() == [[number, number] for number in range(LAST + 1)]
    consumed = await database.fetch("select consumed_by from holdfast.messages order by id")
    assert [row[0] for row in consumed] == ["1", *(f"{number}~1" for number in range(1, LAST + 1))]
    assert [step_id for step_id, _, _ in await journal(database, "one")] == [
        f"{LAST}~1",
        f"{LAST}~2",
        f"{LAST}~3",
    ]


@pytest.mark.parametrize(("point", "hit"), [*((point, 1) for point in PATCH), *((w, 3) for w in WRITER)])
async def test_w5_killed_while_a_change_is_recorded_it_goes_the_new_way_all_the_same(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, point: str, hit: int
) -> None:
    client = await processes.client()
    handle = await client.start(guarded(), id="one")
    await handle.send("go on", "!")
    dying = await actors.hire(dsn, "guarded", point=point, hit=hit)
    await carry_on(actors, dsn, "guarded", dying)
    assert await handle.result(PATIENCE) == "aB!"
    assert await journal(database, "one") == [
        ("1", "step", "say"),
        ("#louder", "patched", "louder"),
        ("2", "step", "shout"),
        ("3", "recv", "go on"),
    ]


@pytest.mark.parametrize("point", PARK)
@pytest.mark.parametrize("to_end", [False, True], ids=["to go on", "to end"])
async def test_w5_killed_while_it_is_passed_on_it_is_passed_on_by_the_next(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, point: str, to_end: bool
) -> None:
    client = await processes.client()
    handle = await client.start(original(), id="one")
    writer = await actors.hire(dsn, "original")
    await until(lambda: _half_way(database), "come half way")
    await writer.leave()
    dying = await actors.hire(dsn, "renamed", point=point)
    await carry_on(actors, dsn, "renamed", dying)
    await until(lambda: _parked(database), "parked")
    if to_end:
        await client.cancel("one")
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
        return
    assert await state(database, "one") == "PENDING"
    await actors.hire(dsn, "original")
    await handle.send("go on", "!")
    assert await handle.result(PATIENCE) == "ab!"


async def _half_way(database: Connection) -> bool:
    return len(await journal(database, "one")) == 2


async def _parked(database: Connection) -> bool:
    query = "select executor_id is null and parked is not null from holdfast.workflows"
    return bool(await database.fetchval(query))

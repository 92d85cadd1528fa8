"""`first` over what streams and watched events bring: what loses is read again, what wins is kept."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, within
from tests.runtime.witness import until

GO = hf.Topic[str]("go")
NUMBERS = hf.Stream[int]("numbers")
STATE = hf.Event[str]("state")


@hf.workflow
async def source(values: list[int]) -> str:
    await NUMBERS.write(*values)
    await STATE.set("begun")
    await GO.recv()
    await NUMBERS.write(99)
    await STATE.set("done")
    return await GO.recv()


@hf.workflow
async def merger(other: str) -> list[Any]:
    seen: list[Any] = []
    reader = NUMBERS.read(other)
    while len(seen) < 5:
        match await hf.first(anext(reader), GO.recv()):
            case (0, number):
                seen.append(number)
            case (1, word):
                seen.append(word)
    seen.append(await GO.recv())
    return seen


@hf.workflow
async def watcher(other: str) -> list[Any]:
    seen: list[Any] = []
    states = hf.watch_event(other, STATE)
    while True:
        try:
            seen.append(await hf.first(anext(states), GO.recv(), timeout=60))
        except StopAsyncIteration:
            seen.append("over")
            break
    seen.append(await GO.recv())
    return seen


async def test_s8_stream_items_race_messages_and_a_replay_sees_the_same(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(source, merger)
    await rt.start(source([1, 2, 3]), id="s")
    await waits.on("message", "s", "go")
    handle = await rt.start(merger("s"), id="m")
    await waits.on("message", "m", "go")
    await handle.send(GO, "word")
    await until(lambda: taken(database, "m", 1), "the word is taken")
    before = await database.fetch("select * from holdfast.steps where workflow_id = 'm' order by seq")
    await processes.leave(rt)
    second = await processes.runtime(source, merger)
    await second.send("s", "on", GO)
    await until(lambda: written(database, 4), "the last number is written")
    await second.send("m", "end", GO)
    assert await within(10, second.handle("m").result()) == [1, 2, 3, "word", 99, "end"]
    after = await database.fetch("select * from holdfast.steps where workflow_id = 'm' order by seq")
    assert [tuple(row) for row in after][: len(before)] == [tuple(row) for row in before]
    # One batch of three, two values at hand, the word, the last number, the end.
    assert [row["kind"] for row in after] == ["first"] * 5 + ["recv"]


async def test_e5_a_change_of_a_watched_event_races_a_message(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(source, watcher)
    await rt.start(source([1]), id="s")
    await waits.on("message", "s", "go")
    handle = await rt.start(watcher("s"), id="w")
    await waits.on("message", "w", "go")
    await handle.send(GO, "word")
    await until(lambda: taken(database, "w", 1), "the word is taken")
    await rt.send("s", "on", GO)
    await until(lambda: recorded(database, "w", 3), "the change is seen")
    await rt.send("s", "bye", GO)
    await until(lambda: recorded(database, "w", 4), "the end is seen")
    await handle.send(GO, "end")
    assert await within(10, handle.result()) == [[0, "begun"], [1, "word"], [0, "done"], "over", "end"]


@hf.workflow
async def itemizer(other: str) -> list[Any]:
    seen: list[Any] = []
    items = NUMBERS.read(other).items()
    while len(seen) < 5:
        match await hf.first(anext(items), GO.recv()):
            case (0, item):
                seen.append([item.offset, item.value, item.attempt])
            case (1, word):
                seen.append(word)
    return seen


async def test_s8_items_with_their_offsets_race_messages_and_a_replay_sees_the_same(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(source, itemizer)
    await rt.start(source([1, 2, 3]), id="s")
    handle = await rt.start(itemizer("s"), id="m")
    await waits.on("message", "m", "go")
    await handle.send(GO, "word")
    await waits.on("message", "m", "go", times=2)
    await processes.leave(rt)
    second = await processes.runtime(source, itemizer)
    await second.send("s", "on", GO)
    found = await within(10, second.handle("m").result())
    assert found == [[0, 1, 1], [1, 2, 1], [2, 3, 1], "word", [3, 99, 1]]


async def test_a_reader_that_counts_from_the_end_is_asked_by_itself_first(processes: Processes) -> None:
    rt = await processes.runtime(source, hasty)
    await rt.start(source([1, 2]), id="s")
    with pytest.raises(hf.WorkflowFailed) as failure:
        await within(10, rt.run(hasty("s")))
    assert isinstance(failure.value.__cause__, TypeError)


@hf.workflow
async def hasty(other: str) -> None:
    await hf.first(anext(NUMBERS.read(other, last=1)), GO.recv())


async def taken(database: Connection, workflow_id: str, count: int) -> bool:
    query = "select count(*) from holdfast.messages where workflow_id = $1 and consumed_by is not null"
    return bool(await database.fetchval(query, workflow_id) == count)


async def written(database: Connection, count: int) -> bool:
    return bool(await database.fetchval("select count(*) from holdfast.stream_values") == count)


async def recorded(database: Connection, workflow_id: str, count: int) -> bool:
    query = "select count(*) from holdfast.steps where workflow_id = $1 and finished_at is not null"
    return bool(await database.fetchval(query, workflow_id) == count)

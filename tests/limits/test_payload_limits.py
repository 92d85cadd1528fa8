"""What cannot be stored is refused where it is given, before any I/O, and harms nobody else [K2]."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, rows, within

MIB = 1024 * 1024
LIMIT = "x" * (MIB - 2)
"""With its quotes exactly what the default allows."""
OVER = "x" * (MIB - 1)
LETTERS = hf.Topic[Any]("letters")
GO = hf.Topic[None]("go")
ELSEWHERE = hf.WorkflowRef[..., None]("elsewhere")


def nested(depth: int) -> object:
    """Lists in lists."""
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


REFUSED: dict[str, tuple[Any, type[hf.PayloadError]]] = {
    "nan": (math.nan, hf.PayloadNotSerializable),
    "infinity": ({"a": [1, -math.inf]}, hf.PayloadNotSerializable),
    "object": ([object()], hf.PayloadNotSerializable),
    "lone surrogate": ({"a": "\ud800"}, hf.PayloadNotSerializable),
    "forgotten await": (nested, hf.PayloadNotSerializable),
    "too deep": (nested(100_000), hf.PayloadNotSerializable),
    "too large": (OVER, hf.PayloadTooLarge),
    "too large together": ([LIMIT], hf.PayloadTooLarge),
}


@hf.workflow
async def inbox(count: int) -> list[Any]:
    return [await LETTERS.recv() for _ in range(count)]


@hf.workflow
async def lengths(count: int) -> list[int]:
    return [len(await LETTERS.recv()) for _ in range(count)]


@hf.workflow
async def child(value: object) -> None: ...


@pytest.mark.parametrize("case", REFUSED)
async def test_k2_refused_from_outside_before_any_io(processes: Processes, case: str) -> None:
    value, error = REFUSED[case]
    client = await processes.client()
    handle = await client.start(inbox(1))
    before = client.statistics()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.send(handle.id, value),
        lambda: handle.send(LETTERS, value),
        lambda: client.start(ELSEWHERE(value)),
        lambda: client.start(ELSEWHERE(value=value)),
    ]
    for act in calls:
        with pytest.raises(error):
            await within(5, act())
    after = client.statistics()
    assert (after.writer, after.lookups, after.pool) == (before.writer, before.lookups, before.pool)


@hf.step
async def returns(case: str) -> Any:  # noqa: ANN401
    return REFUSED[case][0]


@hf.step
async def refused_in_step(case: str) -> list[str]:
    return await attempts(case, in_step=True)


async def attempts(case: str, *, in_step: bool = False) -> list[str]:
    """What each verb raises for a value that cannot be stored."""
    value, me, seen = REFUSED[case][0], hf.current().workflow_id, []
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: hf.send(me, value),
        lambda: hf.set_event("k", value),
        lambda: hf.write_stream("s", "good", value, "good"),
    ]
    if not in_step:
        calls += [lambda: hf.start(child(value)), lambda: child(value), lambda: returns(case)]
    for act in calls:
        try:
            await act()
        except hf.PayloadError as error:
            seen.append(type(error).__name__)
    return seen


@hf.workflow
async def refused_inside(case: str) -> list[list[str]]:
    seen = [await attempts(case), await refused_in_step(case)]
    await hf.write_stream("s", "the only one")
    await GO.recv()
    return seen


@pytest.mark.parametrize("case", REFUSED)
async def test_k2_refused_inside_with_nothing_partial(
    processes: Processes, database: Connection, waits: Waits, case: str
) -> None:
    first = await processes.runtime(refused_inside, child)
    await first.start(refused_inside(case), id="w")
    await waits.on("message", "w", "go")
    left = await rows(database, "messages", "events", "stream_values")
    assert [len(left[table]) for table in left] == [0, 0, 1]
    await processes.leave(first)
    second = await processes.runtime(refused_inside, child)
    await second.send("w", None, GO)
    name = REFUSED[case][1].__name__
    assert await within(10, second.handle("w").result()) == [[name] * 6, [name] * 3]


@hf.workflow
async def ends_with(case: str) -> Any:  # noqa: ANN401
    return REFUSED[case][0]


@pytest.mark.parametrize("case", REFUSED)
async def test_w6_a_result_that_cannot_be_stored_is_an_error_of_the_workflow(
    processes: Processes, case: str
) -> None:
    rt = await processes.runtime(ends_with)
    with pytest.raises(hf.WorkflowFailed) as caught:
        await within(5, rt.run(ends_with(case)))
    assert isinstance(caught.value.__cause__, REFUSED[case][1])


async def test_k2_the_limit_itself_is_good_everywhere(processes: Processes) -> None:
    rt, client = await processes.runtime(at_the_limit), await processes.client()
    handle = await client.start(at_the_limit("x" * (MIB - 4)))
    await handle.send(LETTERS, LIMIT)
    assert await within(10, handle.result()) == LIMIT
    assert await handle.get("k") == LIMIT
    assert await handle.read("s").collect() == [LIMIT] * 3
    assert rt.statistics().writer.backlog == 0


@hf.step
async def same(value: str) -> str:
    return value


@hf.workflow
async def at_the_limit(given: str) -> str:
    assert len(given) == MIB - 4
    value: str = await same(await LETTERS.recv())
    await hf.set_event("k", value)
    await hf.write_stream("s", value, value, value)
    return value


async def test_k2_the_setting_lowers_and_lifts_the_limit(processes: Processes) -> None:
    big = await processes.client(settings=hf.Settings(max_payload=16 * MIB))
    small = await processes.client(settings=hf.Settings(max_payload=10))
    await processes.runtime(lengths, settings=hf.Settings(max_payload=16 * MIB))
    handle = await big.start(lengths(2))
    value = "x" * (16 * MIB - 2)
    await within(10, big.send(handle.id, value, LETTERS))
    with pytest.raises(hf.PayloadTooLarge) as caught:
        await big.send(handle.id, value + "x", LETTERS)
    assert (caught.value.size, caught.value.limit) == (16 * MIB + 1, 16 * MIB)
    with pytest.raises(hf.PayloadTooLarge):
        await small.send(handle.id, "x" * 9, LETTERS)
    await small.send(handle.id, "x" * 8, LETTERS)
    assert await within(10, handle.result()) == [len(value), 8]


async def test_k2_many_large_ones_at_once(processes: Processes) -> None:
    rt, client = await processes.runtime(lengths), await processes.client()
    handle = await rt.start(lengths(24))
    sends = [client.send(handle.id, LIMIT[number:], LETTERS) for number in range(24)]
    await within(20, asyncio.gather(*sends))
    assert client.statistics().writer.batches >= 3  # no batch grows without bound
    assert await within(20, handle.result()) == [MIB - 2 - number for number in range(24)]


async def test_k2_a_refused_value_harms_none_of_its_neighbours(processes: Processes) -> None:
    rt = await processes.runtime(inbox)
    handle = await rt.start(inbox(20))
    values = [math.nan if number % 2 else number for number in range(40)]
    ended = await asyncio.gather(*(rt.send(handle.id, v, LETTERS) for v in values), return_exceptions=True)
    assert [type(end) for end in ended] == [type(None), hf.PayloadNotSerializable] * 20
    assert await handle.result() == list(range(0, 40, 2))


async def test_k2_stored_bytes_that_are_broken_break_nothing_else(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    handle = await client.start(reads_broken())
    for value in ("broken", "good"):
        await handle.send(LETTERS, value)
    await database.execute(
        r"update holdfast.messages set payload = '\xff00' where id = (select min(id) from holdfast.messages)"
    )
    await processes.runtime(reads_broken)
    assert await handle.result() == ["broken", "good"]
    await database.execute(r"update holdfast.events set payload = '\xff00'")
    await database.execute(r"""update holdfast.stream_values set payload = '\xff00' where "offset" = 1""")
    await database.execute(r"update holdfast.workflows set output = '\xff00'")
    for act in (handle.get("k"), client.get_events(handle.id), handle.result()):
        with pytest.raises(hf.PayloadDecodeError):
            await act
    reader = handle.read("s")
    assert await anext(reader) == 0
    with pytest.raises(hf.PayloadDecodeError):
        await anext(reader)
    assert await reader.collect() == [2]


@hf.workflow
async def reads_broken() -> list[str]:
    found = []
    for _ in range(2):
        try:
            found.append(await LETTERS.recv())
        except hf.PayloadDecodeError:
            found.append("broken")
    await hf.set_event("k", 1)
    await hf.write_stream("s", 0, 1, 2)
    return found


async def test_k2_arguments_that_are_broken_fail_the_workflow(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    handle = await client.start(inbox(1))
    await database.execute(r"update holdfast.workflows set input = '\xff00'")
    await processes.runtime(inbox)
    with pytest.raises(hf.WorkflowFailed) as caught:
        await within(5, handle.result())
    assert isinstance(caught.value.__cause__, hf.PayloadDecodeError)

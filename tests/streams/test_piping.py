"""Piping: items pass through and are written on the way, in order, several in one commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

import holdfast as hf
from holdfast._primitives import piping
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, settled, within
from tests.runtime.witness import journal

TOKENS = hf.Stream[Any]("tokens")
GO = hf.Topic[Any]("go")


async def count_to(number: int, pause: float | None = None) -> AsyncIterator[int]:
    for value in range(number):
        if pause is not None:
            await asyncio.sleep(pause)
        yield value


async def failing(number: int) -> AsyncIterator[int]:
    async for value in count_to(number):
        yield value
    raise ValueError("the source is dry")


async def stuck(number: int) -> AsyncIterator[int]:
    async for value in count_to(number):
        yield value
    await asyncio.Event().wait()


@hf.step
async def pipe_in_step(number: int, every: float, most: int | None) -> list[int]:
    return [value async for value in TOKENS.pipe(count_to(number), every=every, most=most)]


@hf.workflow
async def pipes(number: int, every: float = 0.05, most: int | None = None) -> list[int]:
    got = await pipe_in_step(number, every, most)
    await TOKENS.write("end")
    return got


async def tokens(client: hf.Client, workflow_id: str) -> list[Any]:
    reader = client.read_stream(workflow_id, TOKENS)
    return [(item.offset, item.value, item.attempt) async for item in reader.items()]


async def batches(database: Connection) -> list[int]:
    """How many values each write from a step had."""
    found = await database.fetch(
        "select count(*) from holdfast.stream_values where token is not null group by token "
        'order by min("offset")'
    )
    return [row[0] for row in found]


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 1000])
async def test_s1_items_pass_and_are_written_in_order_in_few_commits(
    processes: Processes, database: Connection, number: int
) -> None:
    rt = await processes.runtime(pipes)
    assert await rt.run(pipes(number), id="w") == list(range(number))
    assert [value for _, value, _ in await tokens(rt, "w")] == [*range(number), "end"]
    written = await batches(database)
    assert sum(written) == number
    assert max(written, default=0) <= 100
    assert len(written) <= number // 50 + 2


async def test_a_batch_has_so_many_at_most(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(pipes)
    await rt.run(pipes(50, 3600, 7), id="w")
    assert max(await batches(database)) == 7
    assert len(await tokens(rt, "w")) == 51


@hf.step
async def pipe_and_wait(every: float) -> str:
    seen = asyncio.Event()
    waiting[0] = seen

    async def source() -> AsyncIterator[str]:
        yield "first"
        await seen.wait()
        yield "second"

    return " ".join([word async for word in TOKENS.pipe(source(), every=every)])


waiting: dict[int, asyncio.Event] = {}


@hf.workflow
async def shows_at_once(every: float) -> str:
    return await pipe_and_wait(every)


async def test_s5_an_item_is_seen_before_the_next_one_comes(processes: Processes) -> None:
    rt, client = await processes.runtime(shows_at_once), await processes.client()
    handle = await rt.start(shows_at_once(3600))
    async for value in client.read_stream(handle.id, TOKENS):
        if value == "first":
            waiting[0].set()
        else:
            break  # the end of the source has it written, however long `every` is
    assert await within(5, handle.result()) == "first second"


@hf.step
async def pipe_slowly(number: int, pause: float, every: float) -> int:
    return len([value async for value in TOKENS.pipe(count_to(number, pause), every=every)])


@hf.workflow
async def slow(number: int, pause: float, every: float) -> int:
    return await pipe_slowly(number, pause, every)


async def test_items_that_come_slowly_are_gathered_by_time(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(slow)
    begun = time.monotonic()
    assert await rt.run(slow(60, 0.005, 0.1), id="w") == 60
    most = (time.monotonic() - begun) / 0.1 + 2
    written = await batches(database)
    assert sum(written) == 60
    assert 2 <= len(written) <= most


@hf.step(attempts=2, wait_initial=0.001, wait_jitter=0)
async def pipe_failing(number: int) -> list[int]:
    source = failing(number) if hf.current().attempt == 1 else count_to(number)
    return [value async for value in TOKENS.pipe(source, every=3600)]


@hf.workflow
async def retries(number: int) -> list[int]:
    return await pipe_failing(number)


async def test_s2_what_a_failing_source_gave_is_written_and_tries_are_told_apart(
    processes: Processes,
) -> None:
    rt = await processes.runtime(retries)
    assert await rt.run(retries(3), id="w") == [0, 1, 2]
    assert await tokens(rt, "w") == [(n, n % 3, 1 + n // 3) for n in range(6)]


@hf.step
async def pipe_and_break(close: bool) -> int:
    if close:
        async with aclosing(TOKENS.pipe(count_to(10), every=3600)) as piped:  # type: ignore[type-var]
            async for value in piped:
                if value == 3:
                    break
    else:
        async for value in TOKENS.pipe(count_to(10), every=3600):
            if value == 3:
                break
    return 3


@hf.workflow
async def leaves_early(close: bool) -> int:
    got = await pipe_and_break(close)
    await TOKENS.write("end")
    return got


@pytest.mark.parametrize("close", [False, True])
async def test_s1_what_was_passed_before_the_loop_is_left_is_written(
    processes: Processes, close: bool
) -> None:
    rt = await processes.runtime(leaves_early)
    assert await rt.run(leaves_early(close), id="w") == 3
    assert [value for _, value, _ in await tokens(rt, "w")] == [0, 1, 2, 3, "end"]
    assert pipe_tasks() == []


def pipe_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks() if not task.done()]
    return [name for name in names if name.startswith("holdfast pipe")]


@hf.step
async def pipe_stuck() -> None:
    async for value in TOKENS.pipe(stuck(5), every=3600):
        if value == 4:
            reached[0].set()


reached: dict[int, asyncio.Event] = {}


@hf.workflow
async def gets_stuck() -> None:
    await pipe_stuck()


async def test_w10_cancelling_writes_what_was_passed(processes: Processes) -> None:
    reached[0] = asyncio.Event()
    rt = await processes.runtime(gets_stuck)
    handle = await rt.start(gets_stuck(), id="w")
    await within(5, reached[0].wait())
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, handle.result())
    assert [value for _, value, _ in await tokens(rt, "w")] == [0, 1, 2, 3, 4]
    await settled(rt)
    assert pipe_tasks() == []


async def test_w11_shutting_down_leaves_no_task(processes: Processes) -> None:
    reached[0] = asyncio.Event()
    rt = await processes.runtime(gets_stuck)
    await rt.start(gets_stuck(), id="w")
    await within(5, reached[0].wait())
    await processes.leave(rt)
    assert pipe_tasks() == []


@hf.step
async def pipe_to_closed() -> list[int]:
    passed = 0
    try:
        async for _ in TOKENS.pipe(count_to(1000), every=0, most=5):
            passed += 1
    except hf.StreamClosed:
        return [passed]
    return []


@hf.workflow
async def closes_first() -> list[int]:
    await TOKENS.close()
    return await pipe_to_closed()


async def test_s3_a_closed_stream_is_told(processes: Processes) -> None:
    rt = await processes.runtime(closes_first)
    (passed,) = await within(10, rt.run(closes_first()))
    assert passed < 20


@hf.step
async def pipe_unfit() -> list[Any]:
    async def source() -> AsyncIterator[Any]:
        yield "fits"
        yield float("nan")

    last = None
    try:
        async for value in TOKENS.pipe(source()):
            last = value
    except hf.PayloadNotSerializable:
        return [last, "unfit"]
    return [last]


@hf.workflow
async def unfit() -> list[Any]:
    return await pipe_unfit()


async def test_k2_a_value_that_cannot_be_written_stops_there(processes: Processes) -> None:
    rt = await processes.runtime(unfit)
    assert await rt.run(unfit(), id="w") == ["fits", "unfit"]
    assert [value for _, value, _ in await tokens(rt, "w")] == ["fits"]


async def test_a_full_batch_waits_to_be_written_before_more_is_taken() -> None:
    written: list[list[bytes]] = []
    may = asyncio.Event()

    async def write(payloads: list[bytes]) -> None:
        await may.wait()
        written.append(payloads)

    taken = 0

    async def source() -> AsyncIterator[int]:
        nonlocal taken
        for value in range(20):
            taken += 1
            yield value

    async def drain() -> int:
        piped = piping.pipe_by_time(
            source(), lambda value: b"%d" % value, write, every=0, most=4, name="test"
        )
        return len([value async for value in piped])

    task = asyncio.create_task(drain())
    for _ in range(100):
        await asyncio.sleep(0)
    assert taken == 9, "one batch on its way, one gathered, one item that waits"
    may.set()
    assert await within(5, task) == 20
    assert b"".join(payload for batch in written for payload in batch) == b"".join(
        b"%d" % n for n in range(20)
    )


@hf.workflow
async def pipes_itself(number: int, most: int | None) -> list[int]:
    got = [value async for value in TOKENS.pipe(count_to(number), most=most)]
    await GO.recv()
    return got


@pytest.mark.parametrize(("most", "writes"), [(None, 10), (1, 10), (4, 3), (10, 1), (100, 1)])
async def test_s2_in_workflow_code_batches_are_durable_calls_by_count(
    processes: Processes, database: Connection, waits: Waits, points: Points, most: int | None, writes: int
) -> None:
    first = await processes.runtime(pipes_itself)
    await first.start(pipes_itself(10, most), id="w")
    await waits.on("message", "w", "go")
    assert [kind for _, kind, _ in await journal(database, "w")] == ["write_stream"] * writes
    await processes.leave(first)
    second = await processes.runtime(pipes_itself)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == list(range(10))
    assert [value for _, value, _ in await tokens(second, "w")] == list(range(10))
    assert points.passed["write.before_commit"] == writes


@hf.workflow
async def pipes_failing(most: int) -> str:
    try:
        async for _ in TOKENS.pipe(failing(5), most=most):
            pass
    except ValueError as error:
        return str(error)
    return "?"


async def test_s1_in_workflow_code_what_a_failing_source_gave_is_written(processes: Processes) -> None:
    rt = await processes.runtime(pipes_failing)
    assert await rt.run(pipes_failing(3), id="w") == "the source is dry"
    assert [value for _, value, _ in await tokens(rt, "w")] == [0, 1, 2, 3, 4]


@hf.workflow
async def relays(of: str) -> int:
    count = 0
    async for _ in TOKENS.pipe(TOKENS.read(of), most=10):
        count += 1
    return count


async def test_s8_a_recorded_reader_is_a_source_that_repeats(processes: Processes) -> None:
    rt = await processes.runtime(pipes, relays)
    await rt.run(pipes(25), id="w")
    assert await rt.run(relays("w"), id="copy") == 26
    assert await tokens(rt, "copy") == await tokens(rt, "w")


@hf.workflow
async def fifty_writers() -> None:
    async def branch(number: int) -> None:
        await asyncio.gather(TOKENS.write((number, 0)), TOKENS.write((number, 1)))
        for turn in range(2, 6):
            await TOKENS.write((number, turn))

    await asyncio.gather(*(branch(number) for number in range(50)))


async def test_s1_writers_side_by_side_keep_the_order_of_their_calls(processes: Processes) -> None:
    rt = await processes.runtime(fifty_writers)
    await rt.run(fifty_writers(), id="w")
    values = [tuple(value) for _, value, _ in await tokens(rt, "w")]
    assert len(values) == 300
    for number in range(50):
        assert [turn for writer, turn in values if writer == number] == list(range(6))


@pytest.mark.parametrize(
    ("source", "how", "error"),
    [
        ([1, 2], {}, TypeError),
        (count_to, {}, TypeError),
        (count_to(1), {"every": -1}, ValueError),
        (count_to(1), {"every": None}, TypeError),
        (count_to(1), {"most": 0}, ValueError),
        (count_to(1), {"most": 1.5}, TypeError),
        (count_to(1), {}, hf.NotInWorkflow),
    ],
)
async def test_a_wrong_use_says_so(source: Any, how: dict[str, Any], error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error):
        TOKENS.pipe(source, **how)


async def test_after_a_full_batch_items_are_gathered_again() -> None:
    written: list[list[bytes]] = []

    async def write(batch: list[bytes]) -> None:
        written.append(batch)

    async def add(*items: bytes) -> None:
        for item in items:
            await gathering.add(item)
        for _ in range(10):
            await asyncio.sleep(0)

    gathering = piping.Gathering(write, every=3600, most=2, name="numbers")
    await add(b"1", b"2")
    await add(b"3")
    assert written == [[b"1", b"2"]]
    await add(b"4", b"5")
    assert written == [[b"1", b"2"], [b"3", b"4"]]
    await gathering.flush()
    assert written[2:] == [[b"5"]]

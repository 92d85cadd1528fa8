"""Reading in workflow code: recorded in batches, the same on a replay, and on behind it [S8]."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast._store.looks import STREAM_BATCH
from tests.processes import Points, Processes, Waits, rows, within
from tests.runtime.witness import journal

TOKENS = hf.Stream[Any]("tokens")
COPY = hf.Stream[Any]("copy")
NEXT = hf.Topic[Any]("next")
GO = hf.Topic[Any]("go")
SPANS = hf.Topic[dict[str, Any]]("spans")


@hf.workflow
async def mirror() -> None:
    """Writes what it is sent, closes when it is sent "close", ends when it is sent None."""
    async for value in NEXT:
        if value is None:
            return
        if value == "close":
            await TOKENS.close()
        else:
            await TOKENS.write(*(value if isinstance(value, list) else [value]))


@hf.workflow
async def burst(count: int, size: int) -> None:
    await TOKENS.write(*(f"{number:x>{size}}" for number in range(count)))


@hf.workflow
async def big(count: int, size: int) -> None:
    for _ in range(count):
        await TOKENS.write("x" * size)


@hf.workflow
async def relay(of: str) -> list[Any]:
    """Reads to the end, then waits."""
    reader = TOKENS.read(of)
    seen = [value async for value in reader]
    await GO.recv()
    return [seen, reader.closed, reader.ended, reader.offset]


@hf.workflow
async def reads(of: str) -> list[Any]:
    """Reads the spans that it is sent, without following."""
    found: list[Any] = []
    async for span in SPANS:
        if not span:
            return found
        reader = hf.read_stream(of, TOKENS, **span)
        items = [[item.offset, item.value, item.attempt] async for item in reader.items()]
        found.append([items, reader.closed, reader.ended])
        await hf.set_event("spans read", len(found))
    return found


async def written(rt: hf.Client, count: int) -> None:
    """Returns once the mirror has written so much."""
    async with asyncio.timeout(5):
        async for item in rt.read_stream("w", TOKENS).items():
            if item.offset == count - 1:
                return


async def kinds(database: Connection, workflow_id: str) -> list[str]:
    return [kind for _, kind, _ in await journal(database, workflow_id)]


async def test_s8_what_is_read_is_recorded_in_batches(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(burst, relay)
    count = 2 * STREAM_BATCH + 3
    await rt.run(burst(count, 4), id="w")
    handle = await rt.start(relay("w"), id="r")
    await handle.send(GO, None)
    (seen, closed, ended, offset) = await handle.result()
    assert seen == [f"{number:x>4}" for number in range(count)]
    assert (closed, ended, offset) == (False, True, count - 1)
    assert await journal(database, "r") == [
        *((f"{n}", "read_stream", "tokens") for n in (1, 2, 3, 4)),
        ("5", "recv", "go"),
    ]
    outcomes = await database.fetch(
        "select target, outcome from holdfast.steps where workflow_id = 'r' order by seq"
    )
    assert [tuple(row) for row in outcomes][:4] == [("w", 0), ("w", 0), ("w", 0), ("w", 5)]


@hf.workflow
async def measures(of: str) -> list[int]:
    return [len(value) async for value in TOKENS.read(of)]


async def test_s8_a_batch_is_bounded_in_bytes(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(big, measures)
    await rt.run(big(7, 400_000), id="w")
    assert await rt.run(measures("w")) == [400_000] * 7
    sizes = await database.fetch(
        "select octet_length(output) as size from holdfast.steps where outcome = 0 and kind = 'read_stream'"
    )
    assert len(sizes) == 3
    assert max(row["size"] for row in sizes) < 1_300_000


async def test_s8_a_replay_yields_the_recorded_prefix_without_io_and_goes_on(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(mirror, relay)
    writer = await first.start(mirror(), id="w")
    await first.start(relay("w"), id="r")
    for number in range(3):
        await waits.on("stream", "w", "tokens")
        waits.forget()
        await writer.send(NEXT, [number, None])
    await waits.on("stream", "w", "tokens")
    await processes.leave(first)
    # Recorded: what happens to the stream afterwards changes nothing.
    await database.execute("update holdfast.stream_values set payload = '\"changed\"'")
    before = await rows(database, "steps")
    waits.forget()
    second = await processes.runtime(relay)
    await waits.on("stream", "w", "tokens")
    assert second.statistics().writer.records == 1, "the claim that waits"
    assert second.statistics().lookups.looks == 0
    assert await rows(database, "steps") == before
    third = await processes.runtime(mirror)
    for value in ("new", "close"):
        await third.send("w", value, NEXT)
    await second.send("r", None, GO)
    seen = [0, None, 1, None, 2, None, "new"]
    assert await within(5, second.handle("r").result()) == [seen, True, True, 6]


@pytest.mark.parametrize("cut", [False, True], ids=["by notification", "with the listener cut"])
async def test_s8_a_reader_in_workflow_code_is_woken(
    processes: Processes, database: Connection, waits: Waits, cut: bool
) -> None:
    writing, reading = await processes.runtime(mirror), await processes.runtime(relay)
    writer = await writing.start(mirror(), id="w")
    handle = await reading.start(relay("w"), id="r")
    await handle.send(GO, None)
    await waits.on("stream", "w", "tokens")
    async with processes.unheard(database) if cut else nullcontext():
        await writer.send(NEXT, 1)
        await waits.on("message", "w", "next", times=2)
    await writer.send(NEXT, None)
    assert await within(3, handle.result()) == [[1], False, True, 0]


@pytest.mark.parametrize("how", ["close", "end", "cancel"])
async def test_s4_a_reader_in_workflow_code_ends_with_the_stream(
    processes: Processes, waits: Waits, how: str
) -> None:
    rt = await processes.runtime(mirror, relay)
    writer = await rt.start(mirror(), id="w")
    handle = await rt.start(relay("w"), id="r")
    await waits.on("stream", "w", "tokens")
    if how == "cancel":
        await writer.cancel()
    else:
        await writer.send(NEXT, "close" if how == "close" else None)
    await handle.send(GO, None)
    assert await within(5, handle.result()) == [[], how == "close", True, -1]


async def test_s8_spans_are_recorded_too(processes: Processes, database: Connection) -> None:
    first = await processes.runtime(mirror, reads)
    writer = await first.start(mirror(), id="w")
    handle = await first.start(reads("w"), id="r")
    await writer.send(NEXT, [0, 10, 20, 30, 40])
    await written(first, 5)
    for span in ({"follow": False}, {"after": 2, "follow": False}, {"last": 2, "follow": False}):
        await handle.send(SPANS, span)
    for span in ({"last": 0, "follow": False}, {"after": 100, "follow": False}):
        await handle.send(SPANS, span)
    async for count in handle.watch("spans read"):
        if count == 5:
            break
    await processes.leave(first)
    await database.execute("delete from holdfast.stream_values")
    second = await processes.runtime(mirror, reads)
    await second.send("w", "close", NEXT)
    await second.send("r", {"last": 3}, SPANS)
    await second.send("r", {}, SPANS)
    items = [[n, 10 * n, 1] for n in range(5)]
    expected = [[part, False, False] for part in (items, items[3:], items[3:], [], [])]
    assert await within(5, second.handle("r").result()) == [*expected, [[], True, True]]


@hf.workflow
async def from_the_end(of: str, last: int) -> Any:  # noqa: ANN401
    reader = hf.read_stream(of, TOKENS, last=last)
    await hf.set_event("opened", None)
    got = [await anext(reader), await anext(reader)]
    await reader.aclose()
    return [*got, [value async for value in reader]]


@pytest.mark.parametrize("last", [0, 1])
async def test_s6_last_is_what_it_was_when_first_looked_even_after_a_crash(
    processes: Processes, waits: Waits, last: int
) -> None:
    first = await processes.runtime(mirror, from_the_end)
    writer = await first.start(mirror(), id="w")
    await writer.send(NEXT, ["old", "newest"])
    await written(first, 2)
    waits.forget()
    await first.start(from_the_end("w", last), id="r")
    await waits.on("stream", "w", "tokens")
    await processes.leave(first)
    second = await processes.runtime(mirror)
    for value in ("a", "b"):
        await second.send("w", value, NEXT)
    await processes.runtime(from_the_end)
    expected = ["newest", "a"] if last else ["a", "b"]
    assert await within(5, second.handle("r").result()) == [*expected, []]


async def test_s5_an_unknown_workflow_is_recorded(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(asks_nobody, mirror)
    await first.start(asks_nobody(), id="r")
    await waits.on("message", "r", "go")
    await first.start(mirror(), id="nobody")
    await processes.leave(first)
    second = await processes.runtime(asks_nobody)
    await second.send("r", None, GO)
    assert await second.handle("r").result() == ["nobody", "nobody"]
    assert (await kinds(database, "r")) == ["read_stream", "read_stream", "recv"]


@hf.workflow
async def asks_nobody() -> list[str]:
    found = []
    for follow in (True, False):
        try:
            await TOKENS.read("nobody", follow=follow).collect()
        except hf.WorkflowNotFound as error:
            found.append(error.workflow_id)
    await GO.recv()
    return found


@hf.workflow
async def reads_trimmed(of: str) -> list[Any]:
    found: list[Any] = [await anext(hf.read_stream(of, TOKENS))]
    for _ in range(2):
        try:
            await anext(hf.read_stream(of, TOKENS, after=1))
        except hf.StreamTrimmed as error:
            found.append(error.oldest)
    await GO.recv()
    return found


async def test_s8_trimmed_values_are_missed_and_that_is_recorded(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(mirror, reads_trimmed)
    writer = await first.start(mirror(), id="w")
    await writer.send(NEXT, [0, 1, 2, 3, 4, 5])
    await written(first, 6)
    await first.trim_stream("w", TOKENS, before=4)
    await first.start(reads_trimmed("w"), id="r")
    await waits.on("message", "r", "go")
    await processes.leave(first)
    await database.execute("delete from holdfast.streams")
    second = await processes.runtime(reads_trimmed)
    await second.send("r", None, GO)
    assert await second.handle("r").result() == [4, 4, 4]


@hf.workflow
async def reads_itself() -> list[Any]:
    me = hf.current().workflow_id
    await TOKENS.write("a", "b")
    reader = TOKENS.read(me)
    got = [await anext(reader), await anext(reader)]
    await TOKENS.write("c")
    got.append(await anext(reader))
    await TOKENS.close()
    return [*got, await reader.collect(), reader.closed]


async def test_s8_reading_ones_own_stream(processes: Processes) -> None:
    rt = await processes.runtime(reads_itself)
    assert await within(5, rt.run(reads_itself())) == ["a", "b", "c", [], True]


@hf.workflow
async def copies(of: str) -> int:
    count = 0
    async for value in TOKENS.read(of):
        await COPY.write(value)
        count += 1
    return count


async def test_s8_a_loop_with_calls_in_its_body_through_deaths(
    processes: Processes, waits: Waits, points: Points
) -> None:
    """Fetches and writes alternate, and each of the deaths falls behind another one."""
    writing = await processes.runtime(mirror)
    writer = await writing.start(mirror(), id="w")
    client = await processes.client()
    await client.start(copies("w"), id="r")
    sent = 0
    for death in range(6):
        rt = await processes.runtime(copies)
        killed = points.kill(rt, "write.before_commit", "after" if death % 2 else "before")
        while not killed.is_set():
            await writer.send(NEXT, [sent, sent + 1, sent + 2])
            sent += 3
            await asyncio.sleep(0.01)
        await processes.leave(rt)
    await writer.send(NEXT, None)
    await processes.runtime(copies)
    assert await within(20, client.handle("r").result()) == sent
    assert await client.read_stream("r", COPY).collect() == list(range(sent))


@hf.workflow
async def gathers(of: str) -> list[Any]:
    reader = TOKENS.read(of)
    return [
        repr(found) if isinstance(found, Exception) else found
        for found in await asyncio.gather(anext(reader), anext(reader), return_exceptions=True)
    ]


async def test_s8_two_tasks_at_once_on_one_reader(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(mirror, gathers)
    writer = await rt.start(mirror(), id="w")
    handle = await rt.start(gathers("w"))
    await waits.on("stream", "w", "tokens")
    await writer.send(NEXT, 1)
    value, error = await within(5, handle.result())
    assert value == 1
    assert error.startswith("RuntimeError(")


@hf.workflow
async def hands_over(of: str) -> list[Any]:
    reader = TOKENS.read(of)
    first = await anext(reader)

    async def rest() -> list[Any]:
        return [value async for value in reader]

    got = await asyncio.create_task(rest())
    await GO.recv()
    return [first, got]


async def test_s8_a_reader_may_be_given_to_another_task(processes: Processes, waits: Waits) -> None:
    first = await processes.runtime(mirror, hands_over)
    writer = await first.start(mirror(), id="w")
    await first.start(hands_over("w"), id="r")
    for value in (1, 2, 3, None):
        await writer.send(NEXT, value)
    await waits.on("message", "r", "go")
    await processes.leave(first)
    second = await processes.runtime(hands_over)
    await second.send("r", None, GO)
    assert await within(5, second.handle("r").result()) == [1, [2, 3]]


@hf.workflow
async def impatient(of: str) -> list[Any]:
    reader = TOKENS.read(of)
    dropped = anext(reader)
    del dropped
    try:
        async with asyncio.timeout(0.05):
            await anext(reader)
    except TimeoutError:
        await hf.set_event("gave up", None)
    return [await anext(reader), reader.offset]


async def test_s9_a_read_that_is_given_up_loses_nothing(processes: Processes) -> None:
    rt = await processes.runtime(mirror, impatient)
    writer = await rt.start(mirror(), id="w")
    handle = await rt.start(impatient("w"), id="r")
    await handle.get("gave up")
    await writer.send(NEXT, 1)
    assert await within(5, handle.result()) == [1, 0]


async def test_w10_cancelling_a_workflow_that_reads(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(mirror, relay)
    await rt.start(mirror(), id="w")
    handle = await rt.start(relay("w"), id="r")
    await waits.on("stream", "w", "tokens")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, handle.result())
    assert [
        tuple(row)
        for row in await database.fetch("select kind, outcome from holdfast.steps where workflow_id = 'r'")
    ] == [("read_stream", 2)]


@hf.workflow
async def reads_wrong(of: str) -> list[Any]:
    reader = hf.read_stream(of, "tokens", type=int)
    found: list[Any] = [await anext(reader)]
    try:
        await anext(reader)
    except hf.PayloadDecodeError:
        found.append("wrong")
    return [*found, await anext(reader)]


async def test_a_value_that_does_not_fit_passes(processes: Processes) -> None:
    rt = await processes.runtime(mirror, reads_wrong)
    writer = await rt.start(mirror(), id="w")
    await writer.send(NEXT, [1, "two", 3])
    assert await within(5, rt.run(reads_wrong("w"))) == [1, "wrong", 3]


@hf.workflow
async def asks_for_a_wait(of: str) -> list[str]:
    reader = TOKENS.read(of)
    waits = [anext(reader)]
    await waits[0]
    waits.append(anext(reader))
    return [repr(wait) for wait in waits] + [type(wait).__name__ for wait in waits]


async def test_s8_anext_is_a_durable_call_where_nothing_is_at_hand(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(mirror, asks_for_a_wait)
    writer = await rt.start(mirror(), id="w")
    await writer.send(NEXT, [1, 2])
    found = await within(5, rt.run(asks_for_a_wait("w"), id="r"))
    assert found == ["<durable read_stream 'tokens'>", "<durable call>", "Fetch", "Buffered"]
    assert await kinds(database, "r") == ["read_stream"]


@hf.workflow
async def reads_what_is_there(of: str) -> list[Any]:
    reader = hf.read_stream(of, TOKENS, follow=False)
    return [await reader.collect(), reader.closed, reader.ended]


TRIMMER = """
create function public.trim() returns trigger language plpgsql as $$
begin
    {more}
    delete from holdfast.stream_values where "offset" < 3;
    update holdfast.streams set oldest = 3;
    return null;
end
$$;
create trigger trim after insert on holdfast.steps for each row
    when (new.workflow_id = 'r' and new.step_id = '1') execute function public.trim();
"""
"""Trims everything in the commit in which a reader records where the stream ends."""
WRITES_ONE_MORE = """
    insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
        select workflow_id, key, 3, payload, attempt, step_id, created_at from holdfast.stream_values
        where "offset" = 0;
"""


@pytest.mark.parametrize("more", ["", WRITES_ONE_MORE], ids=["nothing since", "one more since"])
async def test_s6_what_was_there_is_trimmed_before_it_is_read(
    processes: Processes, database: Connection, more: str
) -> None:
    rt = await processes.runtime(mirror, reads_what_is_there)
    writer = await rt.start(mirror(), id="w")
    for value in range(3):
        await writer.send(NEXT, value)
    await written(rt, 3)
    await database.execute(TRIMMER.format(more=more))
    assert await within(5, rt.run(reads_what_is_there("w"), id="r")) == [[], False, False]

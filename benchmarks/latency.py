"""How long does it take from one side to the other: send to recv, set to get, write to read, end to result?

From the call on one side to the value on the other, which waits awake: in one process, and to a second,
real one. The clock is the system's monotonic one, the same for both. The floors do the same commits by raw
asyncpg: a message is two of them (send, then take and record), all else one commit and one read; across
processes a NOTIFY in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import asyncpg
from _floor import CLAIM, SEND, STEP, Floor, Inbox, floor
from _harness import Options, Row, cost, main, percentile, run_in_loop

import holdfast as hf

PAUSE = 0.003
inbox = hf.Topic[float]("inbox")
state = hf.Event[float]("state")
words = hf.Stream[float]("words")
now = time.perf_counter


@hf.workflow
async def receiver(count: int) -> list[float]:
    """How long each message took to arrive."""
    return [-(await inbox.recv() - now()) for _ in range(count)]


@hf.workflow
async def publisher(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(PAUSE)
        await state.set(now())


@hf.workflow
async def writer(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(PAUSE)
        await words.write(now())


@hf.workflow
async def brief(asked: float) -> tuple[float, float]:
    """How long it took to begin, and when it ended."""
    begun = now() - asked
    await asyncio.sleep(PAUSE)
    return begun, now()


WORKFLOWS = (receiver, publisher, writer, brief)
Times = dict[str, list[float]]


async def converse(client: hf.Client, count: int) -> Times:
    """The other side of every conversation, in the runtime's process or in another."""
    took: Times = {}
    handle = await client.start(hf.WorkflowRef[[int], list[float]]("receiver")(count))
    for _ in range(count):
        await asyncio.sleep(PAUSE)
        await handle.send(inbox, now())
    took["send → recv"] = await handle.result()
    watched = await client.start(hf.WorkflowRef[[int], None]("publisher")(count))
    took["set → get"] = [now() - sent async for sent in watched.watch(state)]
    read = await client.start(hf.WorkflowRef[[int], None]("writer")(count))
    took["write → read"] = [now() - sent async for sent in read.read(words)]
    begins, ends = [], []
    for _ in range(count):
        await asyncio.sleep(PAUSE)
        begun, ended = await client.run(hf.WorkflowRef[[float], tuple[float, float]]("brief")(now()))
        ends.append(now() - ended)
        begins.append(begun)
    took["end → result"], took["start → first line"] = ends, begins
    return took


# The floor: the same commits, and nothing else


async def floor_here(dsn: str, count: int) -> Times:
    """In one process nobody needs a NOTIFY."""
    reader = await asyncpg.connect(dsn)
    async with floor(dsn) as raw:
        box = Inbox(raw, str(uuid.uuid4()))

        async def receive() -> list[float]:
            return [-(float(await box.receive(str(step))) - now()) for step in range(count)]

        receiving = asyncio.create_task(receive())
        for _ in range(count):
            await asyncio.sleep(PAUSE)
            await box.send(b"%.9f" % now())
        took = {"send → recv": await receiving}
        took["set → get"] = [await _write_and_read(raw, reader) for _ in range(count)]
    await reader.close()
    return took


async def _write_and_read(raw: Floor, reader: asyncpg.Connection[asyncpg.Record]) -> float:
    await asyncio.sleep(PAUSE)
    workflow_id = str(uuid.uuid4())
    begun = now()
    await raw.submit(STEP, workflow_id, "1", "set", b"1")
    assert await reader.fetchval("select output from floor.steps where workflow_id = $1", workflow_id) == b"1"
    return now() - begun


async def floor_listen(dsn: str, count: int) -> Times:
    """The other process: woken by NOTIFY, it takes a message by a commit, or reads a row."""
    heard: asyncio.Queue[float] = asyncio.Queue()
    listener = await asyncpg.connect(dsn)
    reader = await asyncpg.connect(dsn)
    raw = Floor(reader)
    running = asyncio.create_task(raw.run())
    await listener.add_listener("floor", lambda *_: heard.put_nowait(now()))
    print("ready", flush=True)
    took: Times = {"send → recv": [], "set → get": []}
    for step in range(count):
        await heard.get()
        payload = await raw.submit(CLAIM, "across", str(step), "t")
        took["send → recv"].append(now() - float(payload or b"nan"))
    for step in range(count):
        await heard.get()
        # The floor rings for messages only; a second topic serves as a value to be read.
        payload = await reader.fetchval(
            "select payload from floor.messages where workflow_id = 'state' order by id offset $1 limit 1",
            step,
        )
        took["set → get"].append(now() - float(payload))
    running.cancel()
    await listener.close()
    return took


async def floor_across(dsn: str, count: int) -> Times:
    async with floor(dsn) as raw, _other("floor", dsn, count) as other:
        await other.ready()
        for workflow_id in ("across", "state"):
            for _ in range(count):
                await asyncio.sleep(2 * PAUSE)
                await raw.submit(SEND, workflow_id, "t", b"%.9f" % now())
        return await other.times()


# The second process


class _Other:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout

    async def ready(self) -> None:
        assert (await self._stdout.readline()).strip() == b"ready", "the other process did not begin"

    async def times(self) -> Times:
        took: Times = json.loads(await self._stdout.read())
        return took


@contextlib.asynccontextmanager
async def _other(role: str, dsn: str, count: int) -> AsyncIterator[_Other]:
    loop = "uvloop" if "--uvloop" in sys.argv else "asyncio"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "LATENCY_ROLE": role,
            "LATENCY_DSN": dsn,
            "LATENCY_COUNT": str(count),
            "LOOP": loop,
        },
        limit=1 << 26,
    )
    try:
        yield _Other(process)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def play(role: str, dsn: str, count: int) -> None:
    """What the second process does."""
    if role == "floor":
        print(json.dumps(await floor_listen(dsn, count)))
        return
    async with hf.Client(dsn) as client:
        print("ready", flush=True)
        print(json.dumps(await converse(client, count)))


async def holdfast_across(dsn: str, count: int) -> Times:
    async with _other("client", dsn, count) as other:
        await other.ready()
        return await other.times()


async def measure(dsn: str, options: Options) -> Sequence[Row]:
    count, rounds = options.pick(200, 100, 5), options.pick(3, 2, 1)
    rows: dict[tuple[str, str, float], Row] = {}
    aims = {"in one process": (1.5, 4.0), "across two": (2.5, 5.0)}

    def note(place: str, times: Times, *, is_floor: bool) -> None:
        for what, samples in times.items():
            for share, aim in zip((0.5, 0.99), aims[place], strict=True):
                row = rows.setdefault(
                    (place, what, share), cost(f"{what}, {place}, p{share * 100:.0f}", "ms", aim)
                )
                (row.floors if is_floor else row.samples).append(percentile(samples, share) * 1000)

    async with hf.Runtime(dsn, workflows=WORKFLOWS) as runtime:
        turns: list[tuple[str, bool, Callable[[], Awaitable[Times]]]] = [
            ("in one process", False, lambda: converse(runtime, count)),
            ("in one process", True, lambda: floor_here(dsn, count)),
            ("across two", False, lambda: holdfast_across(dsn, count)),
            ("across two", True, lambda: floor_across(dsn, count)),
        ]
        await converse(runtime, min(count, 20))
        for number in range(rounds):
            for place, is_floor, turn in turns if number % 2 == 0 else turns[::-1]:
                note(place, await turn(), is_floor=is_floor)
    for (place, _, share), row in rows.items():
        if not row.floors:  # these, too, are one commit, one wake and one read
            row.floors = rows[place, "set → get", share].floors
    return list(rows.values())


if __name__ == "__main__":
    if role := os.environ.get("LATENCY_ROLE"):
        second = play(role, os.environ["LATENCY_DSN"], int(os.environ["LATENCY_COUNT"]))
        run_in_loop(second, uvloop=os.environ["LOOP"] == "uvloop")
    else:
        main("How long from one side to the other?", measure)

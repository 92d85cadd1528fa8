"""How many messages a second do 100 pairs of workflows exchange that answer each other?

Every message is sent and received durably, exactly once, before the next one goes: two commits a message.
The floor makes the same commits and wakes in memory.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from _floor import NEW, Floor, Inbox, floor
from _harness import Options, Row, in_turns, main, rate

import holdfast as hf

PAIRS = 100
ball = hf.Topic[int]("ball")


@hf.workflow
async def ping(other: str, rounds: int) -> int:
    for number in range(rounds):
        await ball.send(other, number)
        assert await ball.recv() == number
    return rounds


@hf.workflow
async def pong(other: str, rounds: int) -> int:
    for _ in range(rounds):
        await ball.send(other, await ball.recv())
    return rounds


async def exchange(runtime: hf.Runtime, pairs: int, rounds: int) -> None:
    async def one() -> None:
        first, second = str(uuid.uuid4()), str(uuid.uuid4())
        catching = await runtime.start(pong(first, rounds), id=second)
        assert await runtime.run(ping(second, rounds), id=first) == rounds
        await catching.result()

    await asyncio.gather(*(one() for _ in range(pairs)))


async def floor_exchange(writer: Floor, pairs: int, rounds: int) -> None:
    async def one() -> None:
        first, second = (Inbox(writer, str(uuid.uuid4())) for _ in range(2))
        await asyncio.gather(*(writer.submit(NEW, box.workflow_id, "pair", b"") for box in (first, second)))

        async def begin() -> None:
            for number in range(rounds):
                await second.send(b"%d" % number)
                await first.receive(str(number))

        async def answer() -> None:
            for number in range(rounds):
                await first.send(await second.receive(str(number)))

        await asyncio.gather(begin(), answer())

    await asyncio.gather(*(one() for _ in range(pairs)))


async def measure(dsn: str, options: Options) -> Sequence[Row]:
    rows = []
    async with hf.Runtime(dsn, workflows=[ping, pong]) as runtime, floor(dsn) as writer:
        for pairs, rounds in ((1, options.pick(100, 60, 2)), (PAIRS, options.pick(40, 30, 2))):
            row = rate(f"{pairs} pair{'s' * (pairs > 1)}", "messages/s")
            rows.append(row)

            async def ours(row: Row = row, pairs: int = pairs, rounds: int = rounds) -> None:
                begun = time.perf_counter()
                await exchange(runtime, pairs, rounds)
                row.samples.append(2 * pairs * rounds / (time.perf_counter() - begun))

            async def floors(row: Row = row, pairs: int = pairs, rounds: int = rounds) -> None:
                begun = time.perf_counter()
                await floor_exchange(writer, pairs, rounds)
                row.floors.append(2 * pairs * rounds / (time.perf_counter() - begun))

            await in_turns(1, ours, floors)
            row.samples.clear()
            row.floors.clear()
            await in_turns(options.pick(5, 3, 1), ours, floors)
    return rows


if __name__ == "__main__":
    main("How many messages a second between pairs of workflows?", measure)

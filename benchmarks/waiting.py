"""What does a waiting workflow cost: memory, statements while idle, time until 10,000 have woken?

Each sample is a fresh process: its memory before and after so many workflows have begun to wait for a
message, what the database is asked in the seconds after that, and the time from the first message sent to
the last workflow ended. The floors: a bare asyncio task that waits for a future, no statement, and the same
commits by raw asyncpg.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import asyncpg
from _floor import DONE, NEW, Inbox, floor
from _harness import Options, Row, at_once, cost, main, run_in_loop

import holdfast as hf

WARM = 200
SESSIONS = """
select pid, query_start from pg_stat_activity
where datname = current_database() and application_name like 'holdfast %'
"""
news = hf.Topic[int]("news")


@hf.workflow
async def waiter(number: int) -> int:
    return await news.recv()


def resident() -> int:
    """Bytes of memory that this process really has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def until_waiting(runtime: hf.Runtime, count: int) -> None:
    """Until so many wait, and nothing is on its way."""
    while (seen := runtime.statistics()).waiters.waiting < count or seen.writer.backlog:  # noqa: ASYNC110 - tell only
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)


async def start(runtime: hf.Runtime, count: int) -> list[str]:
    ids = [str(uuid.uuid4()) for _ in range(count)]

    async def one(number: int) -> None:
        await runtime.start(waiter(number), id=ids[number])

    await at_once(500, count, one)
    return ids


async def wake(runtime: hf.Runtime, ids: list[str]) -> float:
    """Seconds from the first message sent until the last workflow has ended."""
    begun = time.perf_counter()
    await at_once(1000, len(ids), lambda number: runtime.send(ids[number], number, news))
    while runtime.executor.runs:  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.005)
    return time.perf_counter() - begun


async def statements(dsn: str, seconds: float) -> float:
    """Statements a second of the library's sessions, seen by looking at when each began its last one.

    What the server does by itself, such as vacuum, would be among the transactions that it counts.
    """
    connection = await asyncpg.connect(dsn)
    seen: set[tuple[int, object]] = set()
    await asyncio.sleep(min(1, seconds / 5))
    before = await connection.fetch(SESSIONS)
    begun = time.perf_counter()
    while time.perf_counter() < begun + seconds:
        await asyncio.sleep(0.025)
        seen.update((row[0], row[1]) for row in await connection.fetch(SESSIONS))
    took = time.perf_counter() - begun
    await connection.close()
    return len(seen - {(row[0], row[1]) for row in before}) / took


async def play(dsn: str, count: int, idle: float) -> dict[str, float]:
    """One sample, in this process."""
    async with hf.Runtime(dsn, workflows=[waiter]) as runtime:
        warm = await start(runtime, min(WARM, count))
        await until_waiting(runtime, len(warm))
        await wake(runtime, warm)
        nobody = runtime.statistics().waiters.waiting
        before = resident()
        ids = await start(runtime, count)
        await until_waiting(runtime, nobody + count)
        each = (resident() - before) / count
        found = {"memory": each / 1024}
        if idle:
            found["idle"] = await statements(dsn, idle)
        found["wake"] = await wake(runtime, ids)
        return found


async def play_floor(dsn: str, count: int) -> dict[str, float]:
    before = resident()
    futures = [asyncio.get_running_loop().create_future() for _ in range(count)]

    async def wait(number: int) -> None:
        await futures[number]

    tasks = [asyncio.create_task(wait(number)) for number in range(count)]
    await asyncio.sleep(0)
    each = (resident() - before) / count
    for future in futures:
        future.set_result(None)
    await asyncio.gather(*tasks)
    async with floor(dsn) as writer:
        boxes = [Inbox(writer, str(uuid.uuid4())) for _ in range(count)]

        async def receive(box: Inbox) -> None:
            await box.receive("1")
            await writer.submit(DONE, box.workflow_id, b"1")

        await asyncio.gather(*(writer.submit(NEW, box.workflow_id, "waiter", b"1") for box in boxes))
        waiting = [asyncio.create_task(receive(box)) for box in boxes]
        await asyncio.sleep(0.5)
        begun = time.perf_counter()
        await at_once(1000, count, lambda number: boxes[number].send(b"1"))
        await asyncio.gather(*waiting)
        return {"memory": each / 1024, "wake": time.perf_counter() - begun}


async def sample(role: str, dsn: str, count: int, idle: float) -> dict[str, float]:
    """One sample, in a fresh process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "WAITING": json.dumps([role, dsn, count, idle, "--uvloop" in sys.argv])},
    )
    output, _ = await process.communicate()
    found: dict[str, float] = json.loads(output)
    return found


async def measure(dsn: str, options: Options) -> Sequence[Row]:
    count = options.pick(10_000, 10_000, 20)
    idle = options.pick(10, 6, 1)
    rows = {
        "memory": cost(f"memory of each of {count:,} that wait", "KiB", 8.0),
        "idle": cost("idle", "statements/s", 2.0),
        "wake": cost(f"all {count:,} woken by messages", "s", 3.0),
    }
    for number in range(options.pick(3, 1, 1)):
        for name, value in (await sample("holdfast", dsn, count, 0 if number else idle)).items():
            rows[name].samples.append(value)
        for name, value in (await sample("floor", dsn, count, idle)).items():
            rows[name].floors.append(value)
    return list(rows.values())


if __name__ == "__main__":
    if given := os.environ.get("WAITING"):
        role, dsn, count, idle, uvloop = json.loads(given)

        async def report() -> None:
            print(json.dumps(await (play_floor(dsn, count) if role == "floor" else play(dsn, count, idle))))

        run_in_loop(report(), uvloop=uvloop)
    else:
        main("What does a workflow cost that waits?", measure)

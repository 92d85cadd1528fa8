"""What every benchmark shares: options, a durable server, interleaved rounds, medians, table and JSON.

Measures nothing itself. A machine's speed swings, so whatever is compared is measured in turns, and what is
quoted is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import secrets
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from holdfast.embedded import Embedded

HOME = Path(__file__).parent / ".holdfast"
Size = Literal["full", "quick", "tiny"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line said."""

    size: Size
    dsn: str | None
    json: Path | None
    uvloop: bool

    def pick(self, full: int, quick: int, tiny: int) -> int:
        """The number that belongs to the size of this run."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]


@dataclass(kw_only=True)
class Row:
    """One measured thing: its samples, its floor's from the same rounds, and what it should reach."""

    name: str
    unit: str
    more_is_better: bool
    samples: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    aim: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def floor(self) -> float | None:
        return statistics.median(self.floors) if self.floors else None

    @property
    def ratio(self) -> float | None:
        """The median of each round's value over the same round's floor."""
        pairs = zip(self.samples, self.floors, strict=False)
        ratios = [value / floor for value, floor in pairs if floor]
        return statistics.median(ratios) if ratios else None

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value >= self.aim if self.more_is_better else self.value <= self.aim

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "value": self.value,
            "floor": self.floor,
            "ratio": self.ratio,
            "aim": self.aim,
            "met": self.met,
            "samples": self.samples,
            "floor_samples": self.floors,
        }


def rate(name: str, unit: str, aim: float | None = None) -> Row:
    """A row of which more is better."""
    return Row(name=name, unit=unit, more_is_better=True, aim=aim)


def cost(name: str, unit: str, aim: float | None = None) -> Row:
    """A row of which less is better."""
    return Row(name=name, unit=unit, more_is_better=False, aim=aim)


Measure = Callable[[str, Options], Awaitable[Sequence[Row]]]


def main(question: str, measure: Measure) -> None:
    """Runs a benchmark as a program: `measure(dsn, options)` against a database of its own."""
    options = _parse(question)
    run_in_loop(_run(question, measure, options), uvloop=options.uvloop)


def run_in_loop(work: Any, *, uvloop: bool) -> None:  # noqa: ANN401 - a coroutine of anything
    """Runs a coroutine on the loop that was asked for."""
    if uvloop:
        import uvloop as fast

        fast.run(work)
    else:
        asyncio.run(work)


def _parse(question: str) -> Options:
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, machine and versions")
    parser.add_argument("--dsn", help="a database to use as it is; its tables in `holdfast` and `floor` go")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop")
    given = parser.parse_args()
    size: Size = "tiny" if given.tiny else "quick" if given.quick else "full"
    return Options(size=size, dsn=given.dsn, json=given.json, uvloop=given.uvloop)


async def _run(question: str, measure: Measure, options: Options) -> None:
    async with database(options.dsn) as dsn:
        server = await _server(dsn)
        rows = await measure(dsn, options)
    report = {
        "benchmark": Path(sys.argv[0]).stem,
        "question": question,
        "size": options.size,
        "loop": "uvloop" if options.uvloop else "asyncio",
        "machine": _machine(),
        "server": server,
        "versions": _versions(),
        "rows": [row.as_json() for row in rows],
    }
    show(question, rows, f"{server['version']}, fsync {server['fsync']}, {report['loop']}, {options.size}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


@contextlib.asynccontextmanager
async def database(dsn: str | None) -> AsyncIterator[str]:
    """The database that was given, or a new one on a durable server of our own, on disk."""
    if dsn is not None:
        yield dsn
        return
    embedded = Embedded(HOME, options={"log_min_messages": "fatal"})
    server = await asyncio.to_thread(embedded.acquire)
    name = f"benchmark_{secrets.token_hex(6)}"
    try:
        await _administer(server, f'create database "{name}"')
        await _administer(server, "checkpoint")  # else the first commits wait for the copy to reach the disk
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            await _administer(server, f'drop database if exists "{name}" with (force)')
    finally:
        await asyncio.to_thread(embedded.release)


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _server(dsn: str) -> dict[str, Any]:
    names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_sync_method")
    connection = await asyncpg.connect(dsn)
    try:
        settings = {name: await connection.fetchval(f"show {name}") for name in names}
        number = await connection.fetchval("show server_version")
    finally:
        await connection.close()
    return {"version": f"PostgreSQL {number}", **settings}


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    with contextlib.suppress(OSError, ValueError):
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    with contextlib.suppress(OSError):
        facts["load"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("holdfast", "asyncpg", "msgspec", "uvloop"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


async def in_turns(rounds: int, *contestants: Callable[[], Awaitable[None]]) -> None:
    """Lets each have its turn, round after round; every other round in the opposite order."""
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            await contestant()


async def at_once(together: int, count: int, one: Callable[[int], Awaitable[object]]) -> None:
    """Does `one(0)` … `one(count - 1)`, so many of them at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(min(together, count))))


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that this share of all samples does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(question: str, rows: Sequence[Row], conditions: str) -> None:
    """Prints the table."""
    heads = ("", "holdfast", "floor", "ratio", "aim", "")
    lines = [_cells(row) for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"{question}\n({conditions})")
        widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
        for line in [heads, *lines]:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table(title=question, caption=conditions, title_justify="left", caption_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place in (0, 5) else "right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{_number(row.value)} {row.unit}",
        "" if row.floor is None else _number(row.floor),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.aim is None else f"{'≥' if row.more_is_better else '≤'} {_number(row.aim)}",
        "" if row.met is None else "met" if row.met else "missed",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""The demonstration does what it says, on a given database and on one of its own, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, Shell


def _descendants(marker: str) -> list[str]:
    """Processes that have the marker in their environment or their arguments; Linux only."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in text and int(process.name) != os.getpid():
            found.append(
                subprocess.run(["ps", "-p", process.name, "-o", "args="], capture_output=True).stdout
            )
    return [line.decode() for line in found]


def _check(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.out + done.err
    told: list[dict[str, Any]] = done.documents
    assert told[-1]["ok"] is True
    assert [line["ok"] for line in told if "check" in line] == [True] * 5
    assert [line["result"]["item"] for line in told if "result" in line] == ["a book", "a shelf"]
    return told


async def test_it_keeps_its_promises(shell: Shell) -> None:
    told = _check(await shell("demo", "--json"))
    runs = {line["step"]: list(line["runs"].values()) for line in told if "runs" in line}
    assert runs == {
        "reserve": [1, 0],
        "open_session": [1, 0],
        "settle": [1, 0],
        "pack 1": [1, 0],
        "pack 2": [1, 0],
        "pack 3": [1, 1],
        "pack 4": [0, 1],
        "pack 5": [0, 1],
    }
    streamed = [line["what"].split()[0] for line in told if str(line.get("what")).startswith("stream[")]
    assert streamed == [f"stream[{n}]" for n in range(3)] + [f"stream[{n}]" for n in range(6)]
    kinds = {line["latency"] for line in told if "latency" in line}
    assert kinds >= {
        "set → awaited here",
        "write → read here",
        "send → recv, other process",
        "since the kill",
    }


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Shell]:
    """A shell without a database, whose temporary folder root's server can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        shell = Shell(None, tmp_path)
        shell.environment["TMPDIR"] = folder
        yield shell


def _nothing_is_left(shell: Shell) -> bool:
    temporary = shell.environment["TMPDIR"]
    return not (os.listdir(temporary) or os.listdir(shell.folder) or _descendants(temporary))


async def test_on_a_database_of_its_own_and_for_people(alone: Shell) -> None:
    done = await alone("demo")
    assert done.code == 0, done.out + done.err
    assert done.err == ""
    assert "kill -9" in done.out
    assert done.out.splitlines()[-1].startswith("All as promised, in ")
    assert _nothing_is_left(alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_interrupted_it_leaves_nothing(alone: Shell, number: signal.Signals) -> None:
    process = await alone.begin("demo", "--json")
    assert process.stdout is not None
    while json.loads(await process.stdout.readline()).get("who") != "bank":
        pass
    os.killpg(process.pid, number)
    done = await alone.end(process)
    assert (done.code, done.err) == (130, "holdfast: interrupted\n")
    assert _nothing_is_left(alone)


async def test_killed_it_leaves_no_process(alone: Shell) -> None:
    process = await alone.begin("demo", "--json")
    assert process.stdout is not None
    while json.loads(await process.stdout.readline()).get("who") != "bank":
        pass
    process.kill()
    await process.wait()
    async with asyncio.timeout(20):
        while _descendants(alone.environment["TMPDIR"]):
            await asyncio.sleep(0.05)

"""The command as a shell runs it: a process, with its stdout, its stderr and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import holdfast as hf

PATIENCE = 60

answers = hf.Topic[str]("answer")
stage = hf.Event[str]("stage")
lines = hf.Stream[str]("lines")


@hf.workflow
async def greet(name: str, times: int = 1) -> str:
    """Ends at once."""
    return " ".join([f"hello {name}"] * times)


@hf.workflow
async def ask(question: str) -> str:
    """Publishes, writes, and waits for an answer."""
    await lines.write(question, "is asked")
    await stage.set("asking")
    answer = await answers.recv(timeout=PATIENCE)
    await stage.set("answered")
    await lines.write(answer)
    return answer


@hf.workflow
async def fail(reason: str) -> None:
    """Fails."""
    raise ValueError(reason)


@dataclass(frozen=True)
class Done:
    """What a command has left."""

    code: int | None
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """Its stdout as JSON, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs `holdfast …` against one database, in an empty folder."""

    def __init__(self, dsn: str | None, folder: Path) -> None:
        named = {"HOLDFAST_DATABASE_URL": dsn or "", "DATABASE_URL": "", "HOLDFAST_HOME": ""}
        self.folder = folder
        self.environment = os.environ | named | {"PYTHONWARNINGS": "error"}

    async def begin(self, *words: str, input: bool = False) -> Process:
        """Starts a command."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.cli",
            *words,
            stdin=PIPE if input else DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
        )

    async def end(self, process: Process, input: str | None = None) -> Done:
        """Waits for its end."""
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(None if input is None else input.encode())
        return Done(process.returncode, out.decode(), err.decode())

    async def __call__(self, *words: str, input: str | None = None) -> Done:
        """Runs a command to its end."""
        return await self.end(await self.begin(*words, input=input is not None), input)


@pytest.fixture
def shell(dsn: str, tmp_path: Path) -> Shell:
    """A shell whose environment names the test's database."""
    return Shell(dsn, tmp_path)


@pytest.fixture
async def rt(dsn: str) -> AsyncIterator[hf.Runtime]:
    """A process that runs the workflows of this page."""
    async with hf.Runtime(dsn, workflows=[greet, ask, fail]) as runtime:
        yield runtime

"""Starts the other processes, hears what they tell, and sees to it that none outlives the demonstration."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import msgspec

from holdfast.errors import HoldfastError

PATIENCE = 3.0
"""Seconds that a process may take to leave by itself."""

Line = dict[str, Any]
Hear = Callable[["Actor", Line], None]


class LeftTooEarly(HoldfastError):
    """A process ended, or ended its talk, before it had said what was waited for."""


class Actor:
    """One process, and all it has told."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.pid: int = process.pid
        self.process = process
        self.told: list[Line] = []
        self._news = asyncio.Event()
        self._over = False

    async def until(self, event: str, **facts: object) -> Line:
        """The first thing it tells, or has told, that is like this.

        Raises:
            LeftTooEarly: if it ends before.
        """
        wanted = {"event": event, **facts}
        seen = 0
        while True:
            for line in self.told[seen:]:
                if wanted.items() <= line.items():
                    return line
            seen = len(self.told)
            if self._over:
                raise LeftTooEarly(f"{self.name} (process {self.pid}) has ended")
            self._news.clear()
            await self._news.wait()

    async def order(self, **what: object) -> None:
        """Tells it to do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(what) + b"\n")
        await self.process.stdin.drain()

    async def kill(self) -> int:
        """kill -9; returns its exit code when it is gone."""
        self.process.kill()
        return await self.process.wait()

    async def hear(self, tell: Hear) -> None:
        """Listens until it has nothing more to tell."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear_log(self.process.stderr, tell), name=f"log of {self.name}")
            async for text in self.process.stdout:
                line = msgspec.json.decode(text)
                self.told.append(line)
                tell(self, line)
                self._news.set()
            self._over = True
            self._news.set()

    async def _hear_log(self, log: asyncio.StreamReader, tell: Hear) -> None:
        async for text in log:
            tell(self, {"event": "log", "text": text.decode(errors="replace").rstrip()})

    async def leave(self) -> None:
        """Sees it off: asks it to end, and kills it if it does not. Not to be cancelled in the middle."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            await self.kill()


async def _finish(actor: Actor) -> None:
    """Sees an actor off, through a cancellation too, which only makes it quick."""
    leaving = asyncio.create_task(actor.leave(), name=f"{actor.name} leaves")
    try:
        await asyncio.shield(leaving)
    except asyncio.CancelledError:
        if actor.process.returncode is None:
            actor.process.kill()
        await asyncio.wait({leaving})
        raise


class Cast:
    """All the processes; leaving it leaves none."""

    def __init__(self, environment: Mapping[str, str], tell: Hear) -> None:
        self._environment = {**os.environ, **environment}
        self._tell = tell
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._exit.__aenter__()
        self._group = await self._exit.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._exit.__aexit__(kind, error, trace)

    async def call(self, name: str, *role: str) -> Actor:
        """Starts a process; it has said nothing yet."""
        return await self._exit.enter_async_context(self._engaged(name, role))

    @asynccontextmanager
    async def _engaged(self, name: str, role: tuple[str, ...]) -> AsyncIterator[Actor]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "holdfast.cli.demo",
            *role,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._environment,
            process_group=0,  # Ctrl-C reaches the one who started it, who tells it to leave
        )
        actor = Actor(name, process)
        try:
            self._group.create_task(actor.hear(self._tell), name=f"what {name} tells")
            yield actor
        finally:
            await _finish(actor)

"""Real processes that run workflows: made in milliseconds, as forks of one that has imported everything, and
killed, stopped or sent home by the test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.runtime.witness import PATIENCE

ROOT = Path(__file__).parents[2]


class Actor:
    """One process."""

    def __init__(self) -> None:
        self.pid = 0
        self.code: int | None = None
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it is still there."""
        if not self.gone.is_set():
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        await self._until_gone()

    async def leave(self) -> None:
        """Leaves its runtime in good order."""
        self.signal(signal.SIGTERM)
        await self._until_gone()

    async def died(self) -> None:
        """Waits for its end, which comes by itself."""
        await self._until_gone()

    async def _until_gone(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.gone.wait()


class Troupe:
    """All processes of a test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._actors: dict[int, Actor] = {}
        self._hired: asyncio.Queue[Actor] = asyncio.Queue()

    async def hire(
        self,
        dsn: str,
        part: str,
        *,
        heartbeat: float = 0.1,
        lease: float = 2.0,
        point: str = "-",
        hit: int = 1,
    ) -> Actor:
        """A process that runs the workflows of a part; it has entered its runtime. It dies at the n-th hit of
        a point.
        """
        actor = Actor()
        assert self._process.stdin is not None
        self._hired.put_nowait(actor)
        self._process.stdin.write(f"{dsn} {part} {heartbeat} {lease} {point} {hit}\n".encode())
        async with asyncio.timeout(PATIENCE):
            await actor.ready.wait()
        return actor

    async def listen(self) -> None:
        """Hears what becomes of the processes."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, pid, *rest = line.decode().split()
            if word == "made":
                actor = self._actors[int(pid)] = self._hired.get_nowait()
                actor.pid = int(pid)
            elif word == "ready":
                self._actors[int(pid)].ready.set()
            else:
                actor = self._actors[int(pid)]
                actor.code = int(rest[0])
                actor.gone.set()
                actor.ready.set()  # as ready as it will ever be

    async def dismiss(self) -> None:
        """Kills those who are still there."""
        for actor in self._actors.values():
            actor.signal(signal.SIGKILL)
        for actor in self._actors.values():
            async with asyncio.timeout(PATIENCE):
                await actor.gone.wait()


@asynccontextmanager
async def troupe() -> AsyncIterator[Troupe]:
    """Makes processes; none of them outlives the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.runtime.cast"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    made = Troupe(process)
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(made.listen(), name="listening to the troupe")
        try:
            yield made
        finally:
            await made.dismiss()
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            listening.cancel()

"""Processes that die, and what they must have left behind when another has carried their work on."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from holdfast import _observe
from holdfast.testing.faults import Proxy
from holdfast.testing.plugin import MakeDatabase
from tests.crash import story
from tests.runtime.conftest import signals
from tests.runtime.witness import SNAPSHOT, Snapshot, snapshot

__all__ = ["signals"]

ROOT = Path(__file__).parents[2]
KILLED = -9


class Stage:
    """A program that has imported everything, and plays the story in a new process each time it is asked."""

    def __init__(self, story: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", story],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, dsn: str, bodies: Path, point: str, hit: int) -> int:
        """Plays until the n-th hit of a point kills it; the child's exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(dsn, bodies, point, hit, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with staged(story.__name__) as made:
        yield made


@contextmanager
def staged(name: str) -> Iterator[Stage]:
    """A stage for the story in this module, as long as the block lasts."""
    made = Stage(name)
    yield made
    made.process.communicate()
    assert made.process.returncode == 0


class Theatre:
    """One database in which the story is played, and killed, until it has come to its end."""

    def __init__(self, dsn: str, bodies: Path, stage: Stage, play: Callable[..., Any] = story.play) -> None:
        self.dsn = dsn
        self.play = play
        self.bodies = bodies
        self.stage = stage
        self.kills = 0
        self.recorded: Counter[str] = Counter()
        self.ask("create table public.booked (x integer)")

    def kill(self, point: str, hit: int) -> int:
        """Plays in a child until it dies at a point; its exit code."""
        code = self.stage.play(self.dsn, self.bodies, point, hit)
        self.kills += 1
        self._note_recorded()
        return code

    def finish(self) -> list[Any]:
        """Plays to the end, in this process."""
        return asyncio.run(self.play(self.dsn, str(self.bodies)))

    def finish_losing(self, lost: str, *once: str) -> tuple[list[Any], int]:
        """Plays to the end while the "request" or the "reply" of every other batch is lost, and one of each
        statement that contains one of these texts; what came out, and how many batches were lost.
        """
        return asyncio.run(self._finish_losing(lost, *once))

    def ran(self) -> Counter[str]:
        """How often the body of each step has run."""
        return Counter(self.bodies.read_text().splitlines()) if self.bodies.exists() else Counter()

    def snapshot(self) -> Snapshot:
        """All that is in the tables, except where the bodies are counted."""
        found = asyncio.run(self._snapshot())
        return {
            name: [tuple(self._plain(value) for value in row) for row in rows] for name, rows in found.items()
        }

    def ask(self, query: str) -> list[Any]:
        """The rows of a query."""
        return asyncio.run(self._ask(query))

    def check(self, expected: Snapshot) -> None:
        """The history is exact: as if nothing had happened."""
        found = self.snapshot()
        for name in SNAPSHOT:
            assert found[name] == expected[name], name
        booked = [(7,)] if self.play is story.play else []
        assert self.ask("select x from public.booked") == booked, "a transaction's effect, exactly once"
        ran = self.ran()
        for body, times in self.recorded.items():
            assert ran[body] == times, f"recorded, and ran again: {body}"
        steps = self.ask(
            "select workflow_id || ' ' || step_id, attempts from holdfast.steps "
            "where attempts > 0 and kind <> 'first'"  # of the step that won it
        )
        for body, attempts in steps:
            assert attempts <= ran[body] <= attempts * (1 + self.kills), body
        self._check_order()

    def _check_order(self) -> None:
        """What one branch has called one after another has completed in that order."""
        last: dict[str, tuple[int, int]] = {}
        rows = self.ask(
            "select workflow_id || '/' || step_id, seq from holdfast.steps where seq > 0 order by seq"
        )
        for path, seq in rows:
            branch, _, number = path.replace("/", ".").rpartition(".")
            assert last.get(branch, (0, -1)) < (int(number), seq), path
            last[branch] = int(number), seq

    def _note_recorded(self) -> None:
        ran = self.ran()
        rows = self.ask("select workflow_id || ' ' || step_id from holdfast.steps where attempts > 0")
        self.recorded = Counter({body: ran[body] for (body,) in rows})

    async def _finish_losing(self, lost: str, *once: str) -> tuple[list[Any], int]:
        async with Proxy(self.dsn) as proxy:
            lose = proxy.lose_reply if lost == "reply" else proxy.lose_request
            for text in once:
                lose(text)
            batches = itertools.count(1)
            losses = 0

            def lose_every_other(name: str) -> None:
                nonlocal losses
                if name == "writer.before_commit" and next(batches) % 2:
                    lose("commit_batch")
                    losses += 1

            uninstall = _observe.install(lose_every_other)
            try:
                return await self.play(proxy.dsn, str(self.bodies)), losses
            finally:
                uninstall()

    def _plain(self, value: object) -> object:
        return value.replace(str(self.bodies), "…") if isinstance(value, str) else value

    async def _snapshot(self) -> Snapshot:
        connection = await asyncpg.connect(self.dsn)
        try:
            return await snapshot(connection)
        finally:
            await connection.close()

    async def _ask(self, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.dsn)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()


@pytest.fixture
def theatre(dsn: str, tmp_path: Path, stage: Stage) -> Theatre:
    return Theatre(dsn, tmp_path / "bodies", stage)


_undisturbed: list[Snapshot] = []


@pytest.fixture
def expected(holdfast_database: MakeDatabase, tmp_path: Path, stage: Stage) -> Snapshot:
    """What a run leaves in the tables in which nobody dies."""
    if not _undisturbed:
        theatre = Theatre(holdfast_database(), tmp_path / "undisturbed", stage)
        assert theatre.finish() == story.RESULT
        _undisturbed.append(theatre.snapshot())
    return _undisturbed[0]

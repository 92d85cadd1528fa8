"""SIGKILL of a process whose workflow reads a stream: nothing is read twice, nothing is missed [S8]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import connect
from tests.streams.relay_story import COUNT, play

ROOT = Path(__file__).parents[2]


def kill(dsn: str, point: str, hit: int) -> None:
    """Plays in a child until it dies at a point."""
    command = [sys.executable, "-m", "tests.streams.relay_story", dsn, point, str(hit)]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == -9


@pytest.mark.parametrize(
    "kills",
    [
        [("writer.before_commit", 3), ("writer.after_commit", 5)],
        [("writer.after_commit", 7), ("writer.before_commit", 7), ("writer.before_commit", 3)],
        [("write.before_commit", 9), ("write.after_commit", 12)],
    ],
    ids=["early", "often", "at the writes"],
)
async def test_s8_killed_while_reading_the_copy_is_exact(dsn: str, kills: list[tuple[str, int]]) -> None:
    for point, hit in kills:
        kill(dsn, point, hit)
    assert await play(dsn) == [*range(0, 2 * COUNT, 2), COUNT - 3]
    connection = await connect(dsn)
    outcomes = await connection.fetch(
        "select outcome from holdfast.steps where target = 'counts' and kind = 'read_stream' order by seq"
    )
    await connection.close()
    assert {row[0] for row in outcomes[:-1]} == {0}
    assert outcomes[-1][0] == 7

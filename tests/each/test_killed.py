"""SIGKILL in the middle of a fan-out: what is recorded is not done again, what was seen is seen again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from tests.each import story

ROOT = Path(__file__).parents[2]
EXPECTED = sorted(
    [
        *([1, item, -1 if item % 7 == 0 else item**2] for item in range(1, story.ITEMS + 1)),
        *([2, item, -1 if (item + 1) % 7 == 0 else (item + 1) ** 2] for item in range(1, story.ITEMS + 1)),
    ]
)


@pytest.mark.parametrize(
    ("point", "hits"),
    [
        ("step.after_commit", (40, 90)),
        ("step.before_commit", (33, 70)),
        ("writer.after_commit", (25, 30)),
        ("writer.before_commit", (25, 30)),
        ("start.after_commit", (20, 25)),
    ],
)
def test_w2_w4a_killed_twice_the_outcomes_are_exact(
    dsn: str, tmp_path: Path, point: str, hits: tuple[int, int]
) -> None:
    story.bodies = str(tmp_path / "noted")
    recorded: dict[str, int] = {}
    for hit in hits:
        assert _play_until(dsn, point, hit) == -9
        ran = _ran()
        recorded = {body: ran[body] for body in asyncio.run(_recorded(dsn))} | recorded
    result = asyncio.run(story.play(dsn))
    assert sorted(result) == EXPECTED
    ran = _ran()
    for body, times in recorded.items():
        assert ran[body] == times, f"recorded, and ran again: {body}"
    assert len(recorded) >= 20
    _check_seen(result)


def _ran() -> Counter[str]:
    """How often each body has run so far."""
    return Counter(Path(f"{story.bodies}.ran").read_text().splitlines())


def _check_seen(result: list[list[int]]) -> None:
    """What an earlier life has seen is how the last one begins."""
    last = [tuple(found[:2]) for found in result]
    lives: dict[str, list[tuple[int, int]]] = {}
    for line in Path(f"{story.bodies}.seen").read_text().splitlines():
        process, number, item = line.split()
        lives.setdefault(process, []).append((int(number), int(item)))
    assert len(lives) == 3
    for seen in lives.values():
        assert seen == last[: len(seen)]


def _play_until(dsn: str, point: str, hit: int) -> int:
    command = [sys.executable, "-m", "tests.each.story", dsn, story.bodies, point, str(hit)]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=False).returncode


async def _recorded(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch(
            "select workflow_id || ' ' || step_id from holdfast.steps where attempts > 0"
        )
        return {row[0] for row in found}
    finally:
        await connection.close()

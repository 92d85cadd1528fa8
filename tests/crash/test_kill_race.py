"""SIGKILL while one of several things is waited for: who won has won, and nobody else has taken anything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.testing.plugin import MakeDatabase
from tests.crash import race
from tests.crash.conftest import KILLED, Stage, Theatre, staged
from tests.runtime.witness import Snapshot

KILLS = [
    *[("recv.before_claim", hit) for hit in (1, 2, 3, 5, 7, 9, 11)],
    *[("start.before_commit", 1), ("start.after_commit", 1), ("step.before_commit", 2)],
    *[(f"writer.{when}_commit", hit) for hit in range(2, 26, 3) for when in ("before", "after")],
]


@pytest.fixture(scope="module")
def racetrack() -> Iterator[Stage]:
    with staged(race.__name__) as made:
        yield made


@pytest.fixture
def theatre(dsn: str, tmp_path: Path, racetrack: Stage) -> Theatre:
    return Theatre(dsn, tmp_path / "bodies", racetrack, race.play)


_undisturbed: list[Snapshot] = []


@pytest.fixture
def expected(holdfast_database: MakeDatabase, tmp_path: Path, racetrack: Stage) -> Snapshot:
    """What a race leaves in the tables in which nobody dies."""
    if not _undisturbed:
        theatre = Theatre(holdfast_database(), tmp_path / "undisturbed", racetrack, race.play)
        assert theatre.finish() == race.RESULT
        _undisturbed.append(theatre.snapshot())
    return _undisturbed[0]


@pytest.mark.parametrize(("point", "hit"), KILLS)
def test_m4_m8_w2_killed_once_the_history_is_exact(
    theatre: Theatre, expected: Snapshot, point: str, hit: int
) -> None:
    assert theatre.kill(point, hit) == KILLED
    assert theatre.finish() == race.RESULT
    theatre.check(expected)


@pytest.mark.parametrize("seed", range(4))
def test_m4_m8_w2_killed_again_while_recovering_the_history_is_exact(
    theatre: Theatre, expected: Snapshot, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        theatre.kill(*chance.choice(KILLS))
    assert theatre.finish() == race.RESULT
    theatre.check(expected)


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_m4_m8_w2_every_commit_whose_outcome_is_unknown_happens_once(
    theatre: Theatre, expected: Snapshot, lost: str
) -> None:
    result, losses = theatre.finish_losing(lost)
    assert result == race.RESULT
    assert losses >= 10
    theatre.check(expected)

"""SIGKILL at every named point: whoever carries the work on leaves an exact history [W2, W13, M1, S1]."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from tests.crash import story
from tests.crash.conftest import KILLED, ROOT, Theatre
from tests.crash.test_going_on import GOING_ON

HITS = {
    "outside_start.before_commit": (1, 2),
    "outside_start.after_commit": (1, 2),
    "outside_send.before_commit": (1,),
    "outside_send.after_commit": (1,),
    "start.before_commit": (1, 2),
    "start.after_commit": (1, 2),
    "step.before_body": (1, 3, 5, 8),
    "step.before_commit": (1, 3, 5, 8),
    "step.after_commit": (1, 3, 5, 8),
    "transaction.before_commit": (1,),
    "transaction.after_commit": (1,),
    "value.before_commit": (1,),
    "send.before_commit": (1, 2, 3, 4),
    "send.after_commit": (1, 2, 3, 4),
    "recv.before_claim": (1, 2, 3, 4, 5),
    "set.before_commit": (1, 2, 4),
    "set.after_commit": (1, 2, 4),
    "write.before_commit": (1, 2, 3),
    "write.after_commit": (1, 2, 3),
    "close.before_commit": (1,),
    "close.after_commit": (1,),
    "finish.before_commit": (1, 2, 3),
    "finish.after_commit": (1, 2, 3),
}
"""The story passes each point so often, at least."""

BATCHES = (1, 2, 4, 8, 13, 19, 25)
KILLS = [(point, hit) for point, hits in HITS.items() for hit in hits]
BATCH_KILLS = [(f"writer.{when}_commit", hit) for hit in BATCHES for when in ("before", "after")]
ELSEWHERE = {"listener.listening", *GOING_ON}
"""Points at which nothing is written, or that have a story of their own."""


@pytest.mark.parametrize(("point", "hit"), KILLS + BATCH_KILLS)
def test_w2_w13_killed_once_the_history_is_exact(
    theatre: Theatre, expected: dict[str, Any], point: str, hit: int
) -> None:
    assert theatre.kill(point, hit) == KILLED
    assert theatre.finish() == story.RESULT
    theatre.check(expected)


@pytest.mark.parametrize("seed", range(6))
def test_w2_w13_killed_again_while_recovering_the_history_is_exact(
    theatre: Theatre, expected: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        # A recovery may be past the point already, and then nobody dies.
        theatre.kill(*chance.choice(KILLS + BATCH_KILLS))
    assert theatre.finish() == story.RESULT
    theatre.check(expected)


@pytest.mark.parametrize("point", ["step.before_commit", "step.after_commit", "writer.after_commit"])
def test_w2_w13_killed_at_the_same_point_three_times_the_history_is_exact(
    theatre: Theatre, expected: dict[str, Any], point: str
) -> None:
    for _ in range(3):
        assert theatre.kill(point, 1) == KILLED
    assert theatre.finish() == story.RESULT
    theatre.check(expected)


def test_w13_every_named_point_is_one_at_which_somebody_dies() -> None:
    texts = (path.read_text() for path in (ROOT / "src" / "holdfast").rglob("*.py"))
    named = {name for text in texts for name in re.findall(r"\bpoint\(\"([a-z_.]+)\"\)", text)}
    assert named == {point for point, _ in KILLS + BATCH_KILLS} | ELSEWHERE

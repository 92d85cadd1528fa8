"""The reply of every commit is lost once: whoever sends it again does nothing twice [W2, M3, E1, S1]."""

from __future__ import annotations

import pytest

from tests.crash import story
from tests.crash.conftest import Theatre
from tests.runtime.witness import Snapshot


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_w2_m3_every_commit_whose_outcome_is_unknown_happens_once(
    theatre: Theatre, expected: Snapshot, lost: str
) -> None:
    result, losses = theatre.finish_losing(lost, "COMMIT;")
    assert result == story.RESULT
    assert losses >= 20
    theatre.kills = 1 if lost == "request" else 0  # the transaction's body may have run twice
    theatre.check(expected)

"""The reply of every commit is lost once: whoever sends it again does nothing twice [W2, M3, E1, S1]."""

from __future__ import annotations

import pytest

from holdfast import _observe
from holdfast.testing.faults import Proxy
from tests.crash import story
from tests.crash.conftest import Theatre
from tests.runtime.witness import Snapshot


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_w2_m3_every_commit_whose_outcome_is_unknown_happens_once(
    theatre: Theatre, expected: Snapshot, lost: str
) -> None:
    faults = 0

    async def play() -> list[object]:
        async with Proxy(theatre.dsn) as proxy:
            lose = proxy.lose_reply if lost == "reply" else proxy.lose_request
            lose("COMMIT;")
            passed = 0

            def break_every_other(name: str) -> None:
                nonlocal passed, faults
                if name == "writer.before_commit":
                    passed += 1
                    if passed % 2:
                        lose("commit_batch")
                        faults += 1

            uninstall = _observe.install(break_every_other)
            try:
                return await story.play(proxy.dsn, str(theatre.bodies))
            finally:
                uninstall()

    assert theatre.run(play()) == story.RESULT
    assert faults >= 20
    theatre.kills = 1 if lost == "request" else 0  # the transaction's body may have run twice
    theatre.check(expected)

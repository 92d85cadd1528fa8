"""Claims whose replies are lost: what they have taken is run all the same, and nothing twice [W13]."""

from __future__ import annotations

from collections import Counter

import pytest

import holdfast as hf
from holdfast._run import claiming
from holdfast.testing.faults import Proxy
from tests.processes import Processes, within
from tests.runtime.witness import PATIENCE, quick

ran: Counter[str] = Counter()


@hf.workflow
async def counts() -> None:
    ran[hf.current().workflow_id] += 1


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_w13_what_a_claim_has_taken_whose_reply_is_lost_is_run_all_the_same(
    processes: Processes, dsn: str, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    """There is more to take than one claim takes: what nobody knows to be taken must not be forgotten."""
    monkeypatch.setattr(claiming, "MOST_CLAIMED", 4)
    ran.clear()
    client = await processes.client()
    handles = [await client.start(counts(), id=str(number)) for number in range(20)]
    async with Proxy(dsn) as proxy:
        for _ in range(losses):
            proxy.lose_reply("claim_workflows")
        async with hf.Runtime(proxy.dsn, workflows=[counts], settings=quick()):
            for handle in handles:
                await within(PATIENCE, handle.result())
    assert ran == Counter({str(number): 1 for number in range(20)})

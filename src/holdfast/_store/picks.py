"""Records of calls that wait for the first of several things: `first`, and recv on several topics.

What is ready is decided in the database, in the same commit that takes it and completes the call's row; see
`commit_picks`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast._store.commits import Answer, Batch, Code, Owner, Record


class Alternative(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """One of the things that a call waits for.

    `kind` and what it needs: recv (`names`: topics), get_event (`names`: the key), watch_event and
    read_stream (the same, and `after`), run and result, sleep and sleep_until; of all but recv and the sleeps
    `target` is the workflow. A step is decided by the process that runs its body, which makes an `Offer`.
    `timeout`: seconds from when the whole call begins to wait, or the moment of a sleep_until. `keys`: whose
    bells to wait for.
    """

    kind: str
    names: tuple[str, ...] = ()
    target: str | None = None
    timeout: float | None = None
    after: int | None = None
    keys: tuple[str, ...] = ()

    @property
    def options(self) -> int:
        """How many numbers it takes of those that `Answer.choice` counts."""
        return len(self.names) if self.kind == "recv" else 1


def chosen(alternatives: Sequence[Alternative], choice: int) -> tuple[int, int]:
    """Which alternative was taken, and which of its topics, from the choice as it is recorded."""
    for index, alternative in enumerate(alternatives):
        if choice < alternative.options:
            return index, choice
        choice -= alternative.options
    raise IndexError("the recorded choice is none of the alternatives")


class Offer(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What this process has brought about for one alternative: the outcome of a step, a child refused."""

    index: int
    code: Code
    output: bytes | None = None
    attempts: int | None = None


class Pick(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """One call that waits for the first of its alternatives; the lowest that is ready is taken."""

    step_id: str
    kind: str
    name: str
    timeout: float | None
    wanted: Sequence[Alternative]
    offer: Offer | None = None


class Picks(Record, kw_only=True):
    """Picks of one workflow, decided one after another in this order [M7]."""

    owner: Owner
    picks: Sequence[Pick]

    @property
    def places(self) -> int:
        return len(self.picks)

    @property
    def size(self) -> int:
        return sum(len(pick.offer.output) for pick in self.picks if pick.offer and pick.offer.output)

    def add(self, batch: Batch, place: int) -> int:
        run = batch.run(self.owner)
        for pick in self.picks:
            offer = pick.offer or _NO_OFFER
            batch.picks.append(
                (
                    place,
                    run,
                    pick.step_id,
                    pick.kind,
                    pick.name,
                    pick.timeout,
                    _encode([_described(wanted) for wanted in pick.wanted]),
                    offer.index if pick.offer else None,
                    offer.code if pick.offer else None,
                    offer.output,
                    offer.attempts,
                )
            )
            place += 1
        return place


_NO_OFFER = Offer(0, Code.WAIT)


def _described(wanted: Alternative) -> dict[str, Any]:
    """What the database needs to know of it."""
    return {
        "kind": wanted.kind,
        "names": wanted.names,
        "target": wanted.target,
        "timeout": wanted.timeout,
        "after": wanted.after,
    }


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def took_message(alternatives: Sequence[Alternative], answer: Answer) -> bool:
    """Does the answer of a pick come with a message, which somebody else cannot have any more?"""
    if answer.code is not Code.VALUE or answer.choice is None:
        return False
    return alternatives[chosen(alternatives, answer.choice)[0]].kind == "recv"

"""What the writer commits: records as data, and a batch of them as the arguments of `commit_batch`.

A record says what one durable call, or one call from outside, wants written. It knows its columns and the
bells to ring; it knows nothing of connections, retries or callers. Codes of outcomes are listed in
sql/README.md.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any
from uuid import UUID

import msgspec

from holdfast._keys import wake_key

MOST_RECORDS = 8000
"""A batch's places must stay below 8192: `seq` is batch * 8192 + place."""

_WIDTHS = (11, 11, 9, 6, 7, 4, 3, 10, 11, 6)
"""Columns of calls, starts, sends, sets, writes, closes, undos, claims, picks, ends: as in `commit_batch`."""


class Code(IntEnum):
    """What became of a record: outcomes as the journal keeps them; 10 to 12 are answers, never stored."""

    VALUE = 0
    ERROR = 1
    INTERRUPTED = 2
    TIMEOUT = 3
    NOT_FOUND = 4
    FINISHED = 5
    CONFLICT = 6
    CLOSED = 7
    CANCELLED = 8
    QUARANTINED = 9
    WAIT = 10
    ATTACHED = 11
    LOST = 12
    EXPIRED = 13


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What `commit_batch` said of one place, or the journal of a call.

    `choice`: which of its alternatives the call took. `origin`: the workflow for which the payload was
    encoded, if this one is a fork of it [W12].
    """

    code: Code
    payload: bytes | None = None
    note: str | None = None
    amount: float | None = None
    choice: int | None = None
    origin: str | None = None


DONE = Answer(Code.VALUE)
"""The answer for a record of which nothing needed to be said."""


class Owner(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Under which ownership a record is written: the workflow, and the epoch in which it is held."""

    workflow_id: str
    epoch: int


class Batch:
    """The rows of many records, by noun, and the keys of the bells that they ring."""

    __slots__ = (
        "bells",
        "calls",
        "claims",
        "closes",
        "ends",
        "owners",
        "picks",
        "sends",
        "sets",
        "starts",
        "undos",
        "writes",
    )

    def __init__(self) -> None:
        self.owners: dict[Owner, int] = {}
        self.bells: dict[str, None] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.starts: list[tuple[Any, ...]] = []
        self.sends: list[tuple[Any, ...]] = []
        self.sets: list[tuple[Any, ...]] = []
        self.writes: list[tuple[Any, ...]] = []
        self.closes: list[tuple[Any, ...]] = []
        self.undos: list[tuple[Any, ...]] = []
        self.claims: list[tuple[Any, ...]] = []
        self.picks: list[tuple[Any, ...]] = []
        self.ends: list[tuple[Any, ...]] = []

    def run(self, owner: Owner | None) -> int:
        """The number of an owner in this batch, from 1; 0 for a record that nobody owns."""
        if owner is None:
            return 0
        return self.owners.setdefault(owner, len(self.owners) + 1)

    def columns(self) -> list[Sequence[Any] | None]:
        """The arrays of `commit_batch` from run_id on, in its order; None for those of an absent noun."""
        owners = self.owners
        columns: list[Sequence[Any] | None] = [[o.workflow_id for o in owners], [o.epoch for o in owners]]
        nouns = (
            self.calls,
            self.starts,
            self.sends,
            self.sets,
            self.writes,
            self.closes,
            self.undos,
            self.claims,
            self.picks,
            self.ends,
        )
        for rows, width in zip(nouns, _WIDTHS, strict=True):
            columns.extend(zip(*rows, strict=True) if rows else (None,) * width)
        return columns


class Record(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One thing to be written."""

    owner: Owner | None = None

    @property
    def places(self) -> int:
        """How many answers it gets."""
        return 1

    def add(self, batch: Batch, place: int) -> int:
        """Adds its rows under `place`; returns the next free place."""
        raise NotImplementedError

    @property
    def lane(self) -> str:
        """The workflow in whose order this record belongs."""
        return self.owner.workflow_id if self.owner else ""

    @property
    def size(self) -> int:
        """About how many bytes of payload it carries."""
        return 0

    @property
    def recipient(self) -> tuple[str, str] | None:
        """Workflow and topic of a message: a recv that waits for it may claim in the same batch."""
        return None


class Journaled(Record, kw_only=True):
    """A record with a journal row of its own, unless `step_id` belongs to a step whose body made the call:
    then its effect is known by its token.
    """

    owner: Owner
    step_id: str
    kind: str = "step"
    name: str = ""
    target: str | None = None
    outcome: int = 0
    output: bytes | None = None
    attempts: int | None = None
    elapsed: float = 0.0
    open: bool = False
    within: bool = False
    token: UUID | None = None

    def add(self, batch: Batch, place: int) -> int:
        run = batch.run(self.owner)
        if not self.within:
            batch.calls.append(
                (
                    place,
                    run,
                    self.step_id,
                    self.kind,
                    self.name,
                    self.target,
                    self.outcome,
                    self.output,
                    self.attempts,
                    self.elapsed,
                    self.open,
                )
            )
        self.add_effect(batch, place, run)
        return place + 1

    def add_effect(self, batch: Batch, place: int, run: int) -> None:
        """Adds what the call does besides being recorded; a plain step does nothing."""

    @property
    def size(self) -> int:
        return len(self.output) if self.output else 0


class Start(Record, kw_only=True):
    """A workflow that begins, from outside or as a child of `parent`'s `step_id`.

    `implied`: its id is that of the step, and no other workflow may have it; None: the id was given, and no
    workflow at all may have it yet.
    """

    step_id: str | None = None
    id: str
    name: str
    token: UUID
    here: bool
    implied: bool | None = False
    input: bytes
    timeout: float | None = None
    attributes: str | None = None
    journal: Journaled | None = None

    def add(self, batch: Batch, place: int) -> int:
        run = batch.run(self.owner)
        if self.journal is not None:
            self.journal.add(batch, place)
        batch.starts.append(
            (
                place,
                run,
                self.step_id,
                self.id,
                self.name,
                self.token,
                self.here,
                self.implied,
                self.input,
                self.timeout,
                self.attributes,
            )
        )
        if not self.here:
            batch.bells[wake_key("work", self.name)] = None
        return place + 1

    @property
    def lane(self) -> str:
        return self.owner.workflow_id if self.owner else self.id

    @property
    def size(self) -> int:
        return len(self.input)


class OutsideSend(Record, kw_only=True):
    """A message from outside any workflow; its token is the identity that a repeated batch is known by."""

    to: str
    topic: str
    payload: bytes
    token: UUID
    key: str | None = None
    request: str | None = None

    def add(self, batch: Batch, place: int) -> int:
        batch.sends.append(
            (place, 0, None, self.to, self.topic, self.payload, self.token, self.key, self.request)
        )
        batch.bells[wake_key("message", self.to, self.topic)] = None
        return place + 1

    @property
    def recipient(self) -> tuple[str, str] | None:
        return self.to, self.topic

    @property
    def lane(self) -> str:
        return self.to

    @property
    def size(self) -> int:
        return len(self.payload)


class Send(Journaled, kw_only=True):
    """A message from a workflow (journaled), or from a step of it (`within`, known by its token)."""

    to: str
    topic: str
    payload: bytes
    key: str | None = None
    request: str | None = None

    def add_effect(self, batch: Batch, place: int, run: int) -> None:
        batch.sends.append(
            (place, run, self.step_id, self.to, self.topic, self.payload, self.token, self.key, self.request)
        )
        batch.bells[wake_key("message", self.to, self.topic)] = None

    @property
    def recipient(self) -> tuple[str, str] | None:
        return self.to, self.topic

    @property
    def size(self) -> int:
        return len(self.payload)


class SetEvent(Journaled, kw_only=True):
    """The next revision of an event."""

    key: str
    payload: bytes

    def add_effect(self, batch: Batch, place: int, run: int) -> None:
        batch.sets.append((place, run, self.step_id, self.key, self.payload, self.token))
        batch.bells[wake_key("event", self.owner.workflow_id, self.key)] = None

    @property
    def size(self) -> int:
        return len(self.payload)


class Write(Journaled, kw_only=True):
    """The next values of a stream, all in one commit."""

    key: str
    payloads: Sequence[bytes]
    attempt: int = 1

    def add_effect(self, batch: Batch, place: int, run: int) -> None:
        for payload in self.payloads:
            batch.writes.append((place, run, self.step_id, self.key, payload, self.attempt, self.token))
        batch.bells[wake_key("stream", self.owner.workflow_id, self.key)] = None

    @property
    def size(self) -> int:
        return sum(map(len, self.payloads))


class Close(Journaled, kw_only=True):
    """The end of a stream."""

    key: str

    def add_effect(self, batch: Batch, place: int, run: int) -> None:
        batch.closes.append((place, run, self.step_id, self.key))
        batch.bells[wake_key("stream", self.owner.workflow_id, self.key)] = None


class Claim(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One call that takes or waits; `timeout` in seconds, or since the epoch for sleep_until; None waits for
    ever.

    `given`: the call, of whatever kind, takes and waits no longer: INTERRUPTED, its workflow has been
    cancelled [W10]; or EXPIRED, the deadline of the block number `choice` around it has passed. `after`: the
    offset behind which a read_stream reads, or the revision behind which a watch_event looks.
    """

    step_id: str
    kind: str
    name: str = ""
    target: str | None = None
    timeout: float | None = None
    given: Code | None = None
    choice: int | None = None
    after: int | None = None


class Claims(Record, kw_only=True):
    """Claims of one workflow, decided together in this order; several only for one mailbox [M7]."""

    owner: Owner
    claims: Sequence[Claim]

    @property
    def places(self) -> int:
        return len(self.claims)

    def add(self, batch: Batch, place: int) -> int:
        run = batch.run(self.owner)
        for claim in self.claims:
            batch.claims.append(
                (
                    place,
                    run,
                    claim.step_id,
                    claim.kind,
                    claim.name,
                    claim.target,
                    claim.timeout,
                    claim.given,
                    claim.choice,
                    claim.after,
                )
            )
            place += 1
        return place


class Undo(Record, kw_only=True):
    """Gives back the message that a recv or a first took after its caller had been cancelled [M8]."""

    owner: Owner
    step_id: str

    def add(self, batch: Batch, place: int) -> int:
        batch.undos.append((place, batch.run(self.owner), self.step_id))
        return place + 1


class End(Record, kw_only=True):
    """The outcome of a workflow: status 3 SUCCESS, 4 ERROR, 5 CANCELLED."""

    owner: Owner
    status: int
    output: bytes | None

    def add(self, batch: Batch, place: int) -> int:
        batch.ends.append((place, batch.run(self.owner), self.status, self.output, None, None))
        batch.bells[wake_key("end", self.owner.workflow_id)] = None
        return place + 1

    @property
    def size(self) -> int:
        return len(self.output) if self.output else 0


class Continue(Record, kw_only=True):
    """Instead of an end: the workflow goes on under its id with an empty journal, as this workflow with this
    input. Answered with CANCELLED if it had been asked to end.
    """

    owner: Owner
    name: str
    input: bytes

    def add(self, batch: Batch, place: int) -> int:
        batch.ends.append((place, batch.run(self.owner), 0, None, self.name, self.input))
        batch.bells[wake_key("work", self.name)] = None
        batch.bells[wake_key("end", self.owner.workflow_id)] = None  # it may have been asked to end
        return place + 1

    @property
    def size(self) -> int:
        return len(self.input)


def bell_payloads(mark: str, keys: Iterable[str]) -> list[str]:
    """The keys of a batch as payloads of NOTIFY, each under its 8,000 bytes."""
    keys = list(keys)
    return [f"{mark}:{''.join(keys[start : start + 480])}" for start in range(0, len(keys), 480)]


def answers_of(rows: Iterable[Any]) -> dict[int, Answer]:
    """What the database said, by place; negative places are the owners that are lost."""
    return {row[0]: Answer(Code(row[1]), row[2], row[3], row[4], row[5]) for row in rows}

"""What woken waiters outside workflows ask the tables: each question asks for many at once.

Results are given by place, 0-based, in the order of the questions; a place that is missing has nothing to say
yet. What workflow code has read is kept in its journal, as bytes; here they become values again.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection
from holdfast.types import Status

STREAM_BATCH = 500
"""Values of one stream that one look gives at most."""
STREAM_BYTES = 1024 * 1024
"""About how many bytes of them; one value is always given, however large."""

_HEAD = Struct(">qhhi")
_OLDEST = Struct(">q")
_BEGINNING = Struct(">qq")


class ResultLook(msgspec.Struct, frozen=True, gc=False):
    """How has a workflow ended?"""

    workflow_id: str


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A workflow has ended; status None: there is none of this id."""

    status: Status | None
    output: bytes | None
    name: str | None


class EventLook(msgspec.Struct, frozen=True, gc=False):
    """Is there a value of this event newer than revision `after`?"""

    workflow_id: str
    key: str
    after: int = 0


class EventNews(msgspec.Struct, frozen=True, gc=False):
    """The latest value, if it is newer (else revision None), and how the workflow stands (None: there is
    none). `origin`: the workflow for which the value was encoded, if this one is a fork.
    """

    revision: int | None
    payload: bytes | None
    origin: str | None
    status: Status | None


class StreamLook(msgspec.Struct, frozen=True, gc=False):
    """What is in a stream behind offset `after`? With `last`: what are its last values, so many of them?
    That is answered in any case.
    """

    workflow_id: str
    key: str
    after: int = -1
    last: int | None = None


class StreamValue(msgspec.Struct, frozen=True, gc=False):
    """One stored value of a stream; `origin` is the workflow for which it was encoded, if this is a fork."""

    offset: int
    payload: bytes
    attempt: int
    origin: str | None = None


class StreamNews(msgspec.Struct, frozen=True, gc=False):
    """Values behind the offset, and what the stream had come to when they were read.

    `oldest`: the values before this offset have been trimmed. `length`: the offset of the next value to be
    written. `status` None: there is no such workflow.
    """

    values: Sequence[StreamValue]
    closed: bool
    status: Status | None
    oldest: int = 0
    length: int = 0

    @property
    def complete(self) -> bool:
        """Are these values all there was?"""
        return not self.values or self.values[-1].offset + 1 >= self.length

    @property
    def final(self) -> bool:
        """Will nothing follow these values?"""
        return self.complete and (self.closed or self.status is None or not self.status.active)


def _status(code: int | None) -> Status | None:
    return None if code is None else Status.from_code(code)


async def look_results(
    connection: Connection, sql: Statements, asked: Sequence[ResultLook]
) -> dict[int, Ended]:
    """Of those workflows that have ended or do not exist: how."""
    rows = await connection.fetch(sql["workflows.look_results"], [look.workflow_id for look in asked])
    return {row[0] - 1: Ended(_status(row[1]), row[2], row[3]) for row in rows}


async def look_events(
    connection: Connection, sql: Statements, asked: Sequence[EventLook]
) -> dict[int, EventNews]:
    """Of those events that have a newer value, or whose workflow has ended: the news."""
    ids, keys, afters = [a.workflow_id for a in asked], [a.key for a in asked], [a.after for a in asked]
    rows = await connection.fetch(sql["events.look"], ids, keys, afters)
    return {row[0] - 1: EventNews(row[1], row[2], row[3], _status(row[4])) for row in rows}


async def look_streams(
    connection: Connection, sql: Statements, asked: Sequence[StreamLook]
) -> dict[int, StreamNews]:
    """Of those streams that have more values or have come to an end: the news."""
    ids, keys, afters = [a.workflow_id for a in asked], [a.key for a in asked], [a.after for a in asked]
    lasts = [a.last for a in asked]
    rows = await connection.fetch(sql["streams.look"], ids, keys, afters, lasts, STREAM_BATCH, STREAM_BYTES)
    news: dict[int, StreamNews] = {}
    values: list[StreamValue] = []
    for place, offset, payload, origin, attempt, closed, status, oldest, length in rows:
        if place - 1 not in news:
            values = []
            news[place - 1] = StreamNews(values, closed, _status(status), oldest, length)
        if offset is not None:
            values.append(StreamValue(offset, payload, attempt, origin))
    return news


def values_of(recorded: bytes) -> list[StreamValue]:
    """The values in a record: framed as in sql/functions/03_reading.sql."""
    values: list[StreamValue] = []
    at = 0
    while at < len(recorded):
        offset, attempt, origin_size, size = _HEAD.unpack_from(recorded, at)
        at += _HEAD.size + origin_size
        origin = recorded[at - origin_size : at].decode() if origin_size else None
        values.append(StreamValue(offset, recorded[at : at + size], attempt, origin))
        at += size
    return values


def oldest_of(recorded: bytes) -> int | None:
    """The oldest offset that was kept, of a record that says that what was asked for had been trimmed."""
    if len(recorded) != _OLDEST.size:
        return None
    oldest: int = _OLDEST.unpack(recorded)[0]
    return oldest


def beginning_of(recorded: bytes) -> tuple[int, int]:
    """The offset behind which to begin, and the length of the stream, of a record that found them out."""
    position, length = _BEGINNING.unpack(recorded)
    return position, length


LOOKS: dict[type, Any] = {ResultLook: look_results, EventLook: look_events, StreamLook: look_streams}
"""Which question is answered by which function."""

"""What woken waiters outside workflows ask the tables: each question asks for many at once.

Results are given by place, 0-based, in the order of the questions; a place that is missing has nothing to say
yet.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection
from holdfast.types import Status

STREAM_BATCH = 500
"""Values of one stream that one look gives at most."""


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
    """What is in a stream behind offset `after`?"""

    workflow_id: str
    key: str
    after: int = -1


class StreamValue(msgspec.Struct, frozen=True, gc=False):
    """One stored value of a stream; `origin` is the workflow for which it was encoded, if this is a fork."""

    offset: int
    payload: bytes
    attempt: int
    origin: str | None = None


class StreamNews(msgspec.Struct, frozen=True, gc=False):
    """Values behind the offset, and what the stream had come to when they were read."""

    values: list[StreamValue]
    closed: bool
    status: Status | None

    @property
    def complete(self) -> bool:
        """Are these values all there was?"""
        return len(self.values) < STREAM_BATCH


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
    rows = await connection.fetch(sql["streams.look"], ids, keys, afters, STREAM_BATCH)
    news: dict[int, StreamNews] = {}
    for place, offset, payload, origin, attempt, closed, status in rows:
        found = news.get(place - 1)
        if found is None:
            found = news[place - 1] = StreamNews([], closed, _status(status))
        if offset is not None:
            found.values.append(StreamValue(offset, payload, attempt, origin))
    return news


LOOKS: dict[type, Any] = {ResultLook: look_results, EventLook: look_events, StreamLook: look_streams}
"""Which question is answered by which function."""

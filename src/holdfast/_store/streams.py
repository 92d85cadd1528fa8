"""Streams as rows, for what is neither written by a commit nor asked in a look: trimming, and the values that
a journal keeps of what workflow code has read.
"""

from struct import Struct, unpack

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection
from holdfast._store.looks import StreamValue

TRIM_BATCH = 20_000
"""Values that are deleted in one transaction."""

_HEAD = Struct(">qhi")
_OLDEST = Struct(">q")
_BEGINNING = Struct(">qq")


async def trim_stream(
    connection: Connection, sql: Statements, workflow_id: str, key: str, before: int
) -> int | None:
    """Forgets the values before an offset. The oldest offset that is still kept, or None: there is no such
    workflow.
    """
    while True:
        row = await connection.fetchrow(sql["streams.trim"], workflow_id, key, before, TRIM_BATCH)
        if row is None:
            return None
        if row[1]:
            oldest: int = row[0]
            return oldest


def values_of(recorded: bytes) -> list[StreamValue]:
    """The values in a record: framed as in sql/functions/03_reading.sql."""
    values: list[StreamValue] = []
    at = 0
    while at < len(recorded):
        offset, attempt, size = _HEAD.unpack_from(recorded, at)
        at += _HEAD.size
        values.append(StreamValue(offset, recorded[at : at + size], attempt))
        at += size
    return values


def oldest_of(recorded: bytes) -> int | None:
    """The oldest offset that was kept, of a record that says that what was asked for had been trimmed."""
    return unpack(">q", recorded)[0] if len(recorded) == _OLDEST.size else None


def beginning_of(recorded: bytes) -> tuple[int, int]:
    """The offset behind which to begin, and the length of the stream, of a record that found them out."""
    position, length = _BEGINNING.unpack(recorded)
    return position, length

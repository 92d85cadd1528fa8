"""Streams as rows, for what is neither written by a commit nor asked in a look: trimming, and which there
are.
"""

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection

TRIM_BATCH = 20_000
"""Values that are deleted in one transaction."""


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


class StreamRow(msgspec.Struct, frozen=True, gc=False):
    """One stream: how many values it keeps."""

    key: str
    length: int
    closed: bool


async def list_streams(connection: Connection, sql: Statements, workflow_id: str) -> list[StreamRow]:
    """The streams of a workflow, by name."""
    return [StreamRow(*row) for row in await connection.fetch(sql["streams.list"], workflow_id)]

"""Streams as rows, for those who look at which there are. Values are records and looks."""

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class StreamRow(msgspec.Struct, frozen=True, gc=False):
    """One stream: how many values it keeps."""

    key: str
    length: int
    closed: bool


async def list_streams(connection: Connection, sql: Statements, workflow_id: str) -> list[StreamRow]:
    """The streams of a workflow, by name."""
    return [StreamRow(*row) for row in await connection.fetch(sql["streams.list"], workflow_id)]

"""Mailboxes as rows, for those who look at them. Sending and taking are records (see commits)."""

from datetime import datetime

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class MessageRow(msgspec.Struct, frozen=True, gc=False):
    """One message, without what it says."""

    id: int
    topic: str
    sender: str | None
    created_at: datetime
    consumed_by: str | None


async def list_messages(
    connection: Connection, sql: Statements, workflow_id: str, after: int, most: int
) -> list[MessageRow]:
    """The mailbox of a workflow, oldest first, behind message `after`."""
    rows = await connection.fetch(sql["messages.list"], workflow_id, after, most)
    return [MessageRow(*row) for row in rows]

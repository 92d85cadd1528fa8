"""Events as rows, for those who look at all of them; single ones are looks and claims."""

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """One value of an event. `origin`: the workflow for which it was encoded, if this one is a fork."""

    key: str
    revision: int
    payload: bytes
    origin: str | None


async def list_events(
    connection: Connection, sql: Statements, workflow_id: str, *, history: bool
) -> list[EventRow]:
    """The values of every key: the latest, or all in the order of their revisions."""
    name = "events.list_history" if history else "events.list_latest"
    return [EventRow(*row) for row in await connection.fetch(sql[name], workflow_id)]

"""Events as rows, for those who look at all of them; single ones are looks and claims."""

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


async def list_events(
    connection: Connection, sql: Statements, workflow_id: str, *, history: bool
) -> list[tuple[str, int, bytes]]:
    """(key, revision, payload) of every key: the latest, or all in the order of their revisions."""
    name = "events.list_history" if history else "events.list_latest"
    return [(row[0], row[1], row[2]) for row in await connection.fetch(sql[name], workflow_id)]

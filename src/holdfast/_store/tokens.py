"""What a token allows, done once. What a token is, and whether it is genuine, is not known here."""

from uuid import UUID

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


async def redeem_token(
    connection: Connection,
    sql: Statements,
    *,
    workflow_id: str,
    topic: str,
    payload: bytes,
    key: str,
    attempt: UUID,
    expires: float,
    channel: str,
) -> bool:
    """Sends the message of a token, if nobody has done so and it has not expired; `expires` is in seconds
    since 1970. Was it sent by this attempt, now or in an earlier try?
    """
    return bool(
        await connection.fetchval(
            sql["tokens.redeem"], workflow_id, topic, payload, key, attempt, expires, channel
        )
    )

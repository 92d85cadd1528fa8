"""The journal as rows: read whole for a recovery, or as people look at it. Records are written by commits."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class JournalRow(msgspec.Struct, frozen=True, gc=False):
    """One recorded or waiting call."""

    step_id: str
    kind: str
    name: str
    target: str | None
    outcome: int | None
    output: bytes | None
    attempts: int | None
    finished: bool
    choice: int | None = None
    origin: str | None = None


class StepRow(msgspec.Struct, frozen=True, gc=False):
    """A call as people look at it."""

    step_id: str
    kind: str
    name: str
    target: str | None
    outcome: int | None
    output: bytes | None
    started_at: datetime
    finished_at: datetime | None
    origin: str | None = None


async def list_journals(
    connection: Connection, sql: Statements, ids: Sequence[str]
) -> dict[str, list[JournalRow]]:
    """The journals of many workflows in one query, in the order of completion, waiting calls last [W3]."""
    journals: dict[str, list[JournalRow]] = {}
    for row in await connection.fetch(sql["steps.list_journals"], ids):
        found = JournalRow(row[1], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11])
        journals.setdefault(row[0], []).append(found)
    return journals


async def list_steps(connection: Connection, sql: Statements, workflow_id: str) -> list[StepRow]:
    """The journal of one workflow."""
    rows: list[Any] = await connection.fetch(sql["steps.list"], workflow_id)
    return [StepRow(*row) for row in rows]


async def record_transaction(
    connection: Connection,
    sql: Statements,
    executor: int | None,
    workflow_id: str,
    epoch: int,
    step_id: str,
    name: str,
    output: bytes,
    attempts: int,
    elapsed: float,
) -> bool:
    """Writes the record of a @transaction in the caller's transaction; False: recorded already, or the
    workflow is lost.
    """
    seq = await connection.fetchval(
        sql["steps.record_transaction"],
        executor,
        workflow_id,
        epoch,
        step_id,
        name,
        output,
        attempts,
        elapsed,
    )
    return seq is not None


async def load_record(
    connection: Connection, sql: Statements, workflow_id: str, step_id: str
) -> JournalRow | None:
    """One record of a journal, if it is complete."""
    row = await connection.fetchrow(sql["steps.load_record"], workflow_id, step_id)
    return (
        None
        if row is None
        else JournalRow(step_id, row[1], row[2], row[3], row[4], row[5], row[6], finished=True)
    )

"""Workflows as rows: claiming them, cancelling them, looking at them. Starts and ends are records (see
commits).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A workflow that this executor has just taken; or, by its status, one that has been claimed in vain too
    often, and has ended [W13]. `remaining`: seconds to its own deadline, if any.
    """

    id: str
    name: str
    status: int
    epoch: int
    claims: int
    generation: int
    input: bytes
    cancelling: bool
    parent_id: str | None
    remaining: float | None


class WorkflowRow(msgspec.Struct, frozen=True, gc=False):
    """A workflow as people look at it; `output` is its error when it has failed."""

    id: str
    name: str
    status: int
    cancelling: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    executor: str | None
    claims: int
    queue: str | None
    output: bytes | None
    attributes: str | None
    parent_id: str | None


async def claim_workflows(
    connection: Connection,
    sql: Statements,
    executor: int,
    number: int,
    names: Sequence[str],
    timeouts: Sequence[float | None],
    recoveries: Sequence[int],
    most: int,
    running: Sequence[str] | None,
    *,
    kind: str,
    channel: str,
) -> list[Claimed]:
    """Takes up to `most` free workflows of these names, of a kind: "work", "parked" by others, or "suspect";
    with `running`, also what this executor owns but does not run. `number` is of this try, ever larger. None,
    if it is fenced.
    """
    rows = await connection.fetch(
        sql["workflows.claim"],
        executor,
        number,
        names,
        timeouts,
        recoveries,
        most,
        running,
        kind,
        channel,
    )
    return [Claimed(*row) for row in rows]


async def settle_workflows(
    connection: Connection, sql: Statements, executor: int, ids: Sequence[str], epochs: Sequence[int]
) -> None:
    """The claims of these workflows of this executor have come to something [W13]."""
    await connection.execute(sql["workflows.settle"], executor, ids, epochs)


async def park_workflow(
    connection: Connection,
    sql: Statements,
    executor: int,
    workflow_id: str,
    epoch: int,
    cause: bytes | None,
    channel: str,
) -> int | None:
    """Gives back a workflow whose code here does not match its journal [W5]; its status, which is CANCELLED
    if it was to end, and None if this executor has lost it.
    """
    status: int | None = await connection.fetchval(
        sql["workflows.park"], executor, workflow_id, epoch, cause, channel
    )
    return status


async def cancel_workflow(
    connection: Connection, sql: Statements, workflow_id: str, channel: str
) -> dict[str, int | None]:
    """Asks it and its children to end. The ids of those that were active, each with the executor that still
    runs it.
    """
    rows = await connection.fetch(sql["workflows.cancel"], workflow_id, channel)
    return {row[0]: row[1] for row in rows}


async def list_cancelling(connection: Connection, sql: Statements, executor: int) -> list[str]:
    """Which workflows of this executor have been asked to end."""
    return [row[0] for row in await connection.fetch(sql["workflows.list_cancelling"], executor)]


async def load_workflow(connection: Connection, sql: Statements, workflow_id: str) -> WorkflowRow | None:
    """One workflow, or None."""
    row = await connection.fetchrow(sql["workflows.load_status"], workflow_id)
    return None if row is None else WorkflowRow(*row)


async def list_workflows(
    connection: Connection, sql: Statements, name: str | None, status: int | None, limit: int
) -> list[WorkflowRow]:
    """Workflows, newest first."""
    rows: list[Any] = await connection.fetch(sql["workflows.list_newest"], name, status, limit)
    return [WorkflowRow(*row) for row in rows]


async def workflow_exists(connection: Connection, sql: Statements, workflow_id: str) -> bool:
    """Is there a workflow of this id?"""
    return bool(await connection.fetchval(sql["workflows.exists"], workflow_id))

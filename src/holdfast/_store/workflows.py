"""Workflows as rows: claiming them, cancelling, resuming, forking and removing them, looking at them. Starts
and ends are records (see commits).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A workflow that this executor has just taken; or, by its status, one that has been claimed in vain too
    often, and has ended [W13]. `remaining`: seconds to its own deadline, if any. `origin`: the workflow for
    which its input was encoded, if it is a fork.
    """

    id: str
    name: str
    status: int
    epoch: int
    claims: int
    generation: int
    input: bytes
    origin: str | None
    cancelling: bool
    parent_id: str | None
    remaining: float | None


class Claim(NamedTuple):
    """What a claim has brought; `held`: nothing, but there is something free that somebody has locked."""

    found: list[Claimed]
    held: bool


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


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which workflows a list shows; None for any. `until` is exclusive; of an older page, `before` is where
    it begins.
    """

    name: str | None = None
    statuses: Sequence[int] | None = None
    queue: str | None = None
    attributes: str | None = None
    parent: str | None = None
    id_prefix: str | None = None
    executor: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None
    finished_from: datetime | None = None
    finished_until: datetime | None = None
    before: tuple[datetime, str] | None = None


class Resumed(NamedTuple):
    """What became of a try to resume: why it was not, or the workflow `id` whose end must be waited for."""

    said: Literal["resumed", "unknown", "active", "success", "error", "wait"]
    id: str
    epoch: int | None
    output: bytes | None


class Pruned(NamedTuple):
    """How many workflows a batch has removed, and where the next one goes on; None: there is nothing more."""

    removed: int
    reached: datetime | None


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
) -> Claim:
    """Takes up to `most` free workflows of these names, of a kind: "work", "parked" by others, or "suspect";
    with `running`, also what this executor owns but does not run. `number` is of this try, ever larger.
    Nothing, if it is fenced.
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
    held = len(rows) == 1 and rows[0]["id"] is None
    return Claim([] if held else [Claimed(*row) for row in rows], held)


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
    connection: Connection, sql: Statements, workflow_id: str, channel: str, epoch: int | None = None
) -> dict[str, int | None]:
    """Asks it and its children to end. The ids of those that were active, each with the executor that still
    runs it. Nothing happens if an `epoch` is given and it has been resumed or taken since.
    """
    rows = await connection.fetch(sql["workflows.cancel"], workflow_id, channel, epoch)
    return {row[0]: row[1] for row in rows}


async def resume_workflow(
    connection: Connection, sql: Statements, workflow_id: str, forgiven: int | None, channel: str
) -> Resumed:
    """Takes up a workflow that has ended, with the children cancelled with it; one that has failed only if
    the error of this epoch is `forgiven`.
    """
    row = await connection.fetchrow(sql["workflows.resume"], workflow_id, forgiven, channel)
    assert row is not None, "it always says something"
    return Resumed(*row)


async def fork_workflow(
    connection: Connection,
    sql: Statements,
    workflow_id: str,
    from_step: str,
    fork: str,
    token: UUID,
    channel: str,
) -> Literal["forked", "unknown", "no step", "conflict"]:
    """Makes a new workflow with the history of another before a step, unless an earlier try has."""
    said: Literal["forked", "unknown", "no step", "conflict"] = await connection.fetchval(
        sql["workflows.fork"], workflow_id, from_step, fork, token, channel
    )
    return said


async def delete_workflow(
    connection: Connection, sql: Statements, workflow_id: str, most: int, channel: str
) -> Literal["unknown", "active", "deleted", "more"]:
    """Deletes an ended workflow, or the next `most` rows of it."""
    said: Literal["unknown", "active", "deleted", "more"] = await connection.fetchval(
        sql["workflows.delete"], workflow_id, most, channel
    )
    return said


async def prune_workflows(
    connection: Connection, sql: Statements, age: float, reached: datetime, most: int, channel: str
) -> Pruned:
    """Deletes the next `most` rows of workflows that ended more than `age` seconds ago."""
    row = await connection.fetchrow(sql["workflows.prune"], age, reached, most, channel)
    assert row is not None, "it always says something"
    return Pruned(*row)


async def list_cancelling(connection: Connection, sql: Statements, executor: int) -> dict[str, int]:
    """Which workflows of this executor have been asked to end, each in which epoch."""
    return {row[0]: row[1] for row in await connection.fetch(sql["workflows.list_cancelling"], executor)}


async def load_workflow(connection: Connection, sql: Statements, workflow_id: str) -> WorkflowRow | None:
    """One workflow, or None."""
    row = await connection.fetchrow(sql["workflows.load_status"], workflow_id)
    return None if row is None else WorkflowRow(*row)


async def list_workflows(
    connection: Connection, sql: Statements, shown: Filter, most: int
) -> list[WorkflowRow]:
    """Workflows, newest first."""
    before_moment, before_id = shown.before or (None, None)
    rows: list[Any] = await connection.fetch(
        sql["workflows.list"],
        shown.name,
        shown.statuses,
        shown.queue,
        shown.attributes,
        shown.parent,
        shown.id_prefix,
        shown.executor,
        shown.created_from,
        shown.created_until,
        shown.finished_from,
        shown.finished_until,
        before_moment,
        before_id,
        most,
    )
    return [WorkflowRow(*row) for row in rows]


async def workflow_exists(connection: Connection, sql: Statements, workflow_id: str) -> bool:
    """Is there a workflow of this id?"""
    return bool(await connection.fetchval(sql["workflows.exists"], workflow_id))

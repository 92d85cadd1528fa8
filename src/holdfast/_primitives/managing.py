"""Workflows as one looks at them, and what becomes of them: what handles and clients share.

Everything works on any workflow, wherever it runs, and is recorded nowhere but in the workflow's own rows.
"""

from datetime import UTC, datetime
from uuid import UUID, uuid5

from holdfast import _keys
from holdfast._codec import decode_attributes
from holdfast._engine.engine import Engine
from holdfast._store import workflows
from holdfast._store.connection import Connection
from holdfast._store.looks import ResultLook
from holdfast._store.workflows import Pruned, Resumed, WorkflowRow
from holdfast.errors import (
    DatabaseUnavailable,
    PayloadError,
    RecordRejected,
    WorkflowConflict,
    WorkflowNotFound,
)
from holdfast.types import Status, WorkflowStatus

REMOVED_AT_ONCE = 5000
"""Rows of a workflow that one transaction deletes."""
FORKS = UUID("8d0a6c1e-52a4-4a0e-9d9a-6a7f6f0f9f0b")
"""Namespace of the identities of forks: the same fork asked for again is the same workflow."""
INFRASTRUCTURE = (PayloadError, RecordRejected, DatabaseUnavailable)
"""Errors of a workflow that say nothing of its work, only that it could not be stored or read."""


async def status_of(engine: Engine, workflow_id: str) -> WorkflowStatus:
    """How a workflow stands now."""
    _keys.check_workflow_id(workflow_id)
    row = await engine.ask(lambda connection: workflows.load_workflow(connection, engine.sql, workflow_id))
    if row is None:
        raise WorkflowNotFound(workflow_id)
    return to_status(engine, row)


def to_status(engine: Engine, row: WorkflowRow) -> WorkflowStatus:
    """A row as people look at it; of its error, only the type and the message."""
    status = Status.from_code(row.status)
    error = None
    if row.output is not None and status is not Status.SUCCESS:
        error = engine.codec.describe_error(row.output, engine.context(row.id, "error"))
    return WorkflowStatus(
        id=row.id,
        name=row.name,
        status=status,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        executor=row.executor,
        attempts=row.claims,
        queue=row.queue,
        error=error,
        attributes=None if row.attributes is None else decode_attributes(row.attributes),
        cancelling=row.cancelling,
        parent=row.parent_id,
    )


async def cancel_workflow(engine: Engine, workflow_id: str) -> bool:
    """Asks a workflow and its children to end, wherever they run; was it active?"""
    _keys.check_workflow_id(workflow_id)
    active = await engine.ask(
        lambda connection: workflows.cancel_workflow(connection, engine.sql, workflow_id, engine.channel)
    )
    if workflow_id in active:
        return True
    if not await engine.ask(
        lambda connection: workflows.workflow_exists(connection, engine.sql, workflow_id)
    ):
        raise WorkflowNotFound(workflow_id)
    return False


async def resume_workflow(engine: Engine, workflow_id: str) -> bool:
    """Lets a workflow that has ended go on from its journal [W12]; False if it was active anyway.

    One that still cleans up after its cancellation is waited for.
    """
    _keys.check_workflow_id(workflow_id)
    forgiven: int | None = None
    while True:
        found = await _try_to_resume(engine, workflow_id, forgiven)
        match found.said:
            case "resumed" | "active":
                return found.said == "resumed"
            case "unknown":
                raise WorkflowNotFound(workflow_id)
            case "success":
                raise WorkflowConflict(
                    workflow_id,
                    f"workflow {workflow_id!r} has ended with a result: fork it to do a part of it again",
                )
            case "error":
                _check_infrastructure(engine, found)
                forgiven = found.epoch
            case "wait":
                await _until_ended(engine, found.id)


async def _until_ended(engine: Engine, workflow_id: str) -> None:
    look = ResultLook(workflow_id)
    await engine.waiters.until((_keys.wake_key("end", workflow_id),), lambda: engine.lookups.look(look))


async def _try_to_resume(engine: Engine, workflow_id: str, forgiven: int | None) -> Resumed:
    return await engine.ask(
        lambda c: workflows.resume_workflow(c, engine.sql, workflow_id, forgiven, engine.channel), long=True
    )


def _check_infrastructure(engine: Engine, found: Resumed) -> None:
    """May this failed workflow be taken up again?

    Raises:
        WorkflowConflict: if its own code has failed: it would do so again.
    """
    assert found.output is not None, "an error is recorded with its description"
    cause = engine.codec.decode_error(found.output, engine.context(found.id, "error"), engine.errors)
    if not isinstance(cause, INFRASTRUCTURE):
        raise WorkflowConflict(
            found.id,
            f"workflow {found.id!r} has failed by itself, with {type(cause).__name__}, and would again: "
            "fork it from the step before which it went wrong",
        ) from cause


async def fork_workflow(engine: Engine, workflow_id: str, from_step: str, fork_id: str | None) -> str:
    """Makes a new workflow with what another had recorded before a step [W12]; its id."""
    _keys.check_workflow_id(workflow_id)
    step_id = _keys.check_name(from_step, "step id")
    made = _keys.new_workflow_id() if fork_id is None else _keys.check_workflow_id(fork_id)
    token = uuid5(FORKS, "\0".join((workflow_id, step_id, made)))
    said = await engine.ask(
        lambda c: workflows.fork_workflow(c, engine.sql, workflow_id, step_id, made, token, engine.channel),
        long=True,
    )
    match said:
        case "unknown":
            raise WorkflowNotFound(workflow_id)
        case "no step":
            raise LookupError(f"workflow {workflow_id!r} has no step {step_id!r} in its journal")
        case "conflict":
            raise WorkflowConflict(made)
        case "forked":
            return made


async def delete_workflow(engine: Engine, workflow_id: str) -> None:
    """Removes an ended workflow with all its rows."""
    _keys.check_workflow_id(workflow_id)
    begun = False

    async def delete(connection: Connection) -> str:
        # A first try whose reply was lost may have deleted it.
        nonlocal begun
        tried, begun = begun, True
        said = await workflows.delete_workflow(
            connection, engine.sql, workflow_id, REMOVED_AT_ONCE, engine.channel
        )
        return "deleted" if tried and said == "unknown" else said

    while (said := await engine.ask(delete)) == "more":
        pass
    if said == "unknown":
        raise WorkflowNotFound(workflow_id)
    if said == "active":
        raise WorkflowConflict(
            workflow_id, f"workflow {workflow_id!r} is active: cancel it, and delete it once it has ended"
        )


async def prune_workflows(engine: Engine, age: float, batch: int) -> int:
    """Removes workflows that ended more than `age` seconds ago; their number."""
    removed = 0
    reached: datetime | None = datetime.min.replace(tzinfo=UTC)
    while reached is not None:
        found = await _prune(engine, age, reached, batch)
        removed, reached = removed + found.removed, found.reached
    return removed


async def _prune(engine: Engine, age: float, reached: datetime, batch: int) -> Pruned:
    return await engine.ask(
        lambda c: workflows.prune_workflows(c, engine.sql, age, reached, batch, engine.channel)
    )

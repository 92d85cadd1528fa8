"""Managing workflows from outside, and looking at them: what a client does besides starting and talking."""

from collections.abc import Sequence

from holdfast import _keys
from holdfast._api.lifecycle import Lifecycle
from holdfast._engine.engine import Statistics
from holdfast._primitives.handles import cancel_workflow, status_of, to_status
from holdfast._store.commits import Code
from holdfast._store.steps import StepRow, list_steps
from holdfast._store.workflows import list_workflows, workflow_exists
from holdfast.errors import WorkflowNotFound
from holdfast.types import Status, StepInfo, WorkflowStatus


class Control(Lifecycle):
    """The managing half of a client; everything works on any workflow, wherever it runs."""

    async def cancel(self, workflow_id: str) -> bool:
        """Asks a workflow and its children to end [W10]; was it active?

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        return await cancel_workflow(self.engine, workflow_id)

    async def status(self, workflow_id: str) -> WorkflowStatus:
        """How a workflow stands now.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        return await status_of(self.engine, workflow_id)

    async def list(
        self, *, name: str | None = None, status: Status | str | None = None, limit: int = 100
    ) -> Sequence[WorkflowStatus]:
        """Workflows, newest first; of a name, in a status."""
        code = None if status is None else Status(status).code
        engine = self.engine
        rows = await engine.ask(lambda c: list_workflows(c, engine.sql, name, code, limit))
        return [to_status(engine, row) for row in rows]

    async def steps(self, workflow_id: str) -> Sequence[StepInfo]:
        """The journal of a workflow: completed calls in their order, then those that wait.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        _keys.check_workflow_id(workflow_id)
        engine = self.engine
        rows = await engine.ask(lambda c: list_steps(c, engine.sql, workflow_id))
        if not rows:
            await self._check_exists(workflow_id)
        return [self._step_info(workflow_id, row) for row in rows]

    def _step_info(self, workflow_id: str, row: StepRow) -> StepInfo:
        error = None
        # The error of a step that won a first was encoded under the step's name, which is not this row's.
        sealed = row.kind == "first" and row.target is None and self.engine.settings.codec is not None
        if row.outcome == Code.ERROR and row.output is not None and not sealed:
            context = self.engine.context(row.target or workflow_id, "error", "" if row.target else row.name)
            error = self.engine.codec.describe_error(row.output, context)
        elif row.outcome not in (None, Code.VALUE):
            error = Code(row.outcome or 0).name.lower().replace("_", " ")
        return StepInfo(
            step_id=row.step_id,
            kind=row.kind,
            name=row.name,
            started_at=row.started_at,
            finished_at=row.finished_at,
            error=error,
        )

    async def _check_exists(self, workflow_id: str) -> None:
        engine = self.engine
        if not await engine.ask(lambda c: workflow_exists(c, engine.sql, workflow_id)):
            raise WorkflowNotFound(workflow_id)

    def statistics(self) -> Statistics:
        """Counts of the machinery: batches, records, waiters, bells, connections."""
        return self.engine.statistics()

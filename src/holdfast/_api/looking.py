"""Looking at workflows: lists, the journal, mailboxes and streams. Nothing here changes anything."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from holdfast import _keys
from holdfast._api.cursors import from_cursor, to_cursor
from holdfast._api.lifecycle import Lifecycle
from holdfast._codec import encode_attributes
from holdfast._engine.engine import Statistics
from holdfast._primitives.managing import status_of, to_status
from holdfast._store.commits import Code
from holdfast._store.connection import Connection
from holdfast._store.messages import list_messages
from holdfast._store.steps import StepRow, list_steps
from holdfast._store.streams import list_streams
from holdfast._store.workflows import Filter, list_workflows, workflow_exists
from holdfast.errors import WorkflowNotFound
from holdfast.types import MessageInfo, Page, Status, StepInfo, StreamInfo, WorkflowStatus

R = TypeVar("R")

MOST_ROWS = 2_000_000_000
MOST_ID = 2**63 - 1


class Looking(Lifecycle):
    """The looking half of a client; everything works on any workflow, wherever it runs."""

    async def status(self, workflow_id: str) -> WorkflowStatus:
        """How a workflow stands now.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        return await status_of(self.engine, workflow_id)

    async def list(
        self,
        *,
        name: str | None = None,
        status: Status | str | Sequence[Status | str] | None = None,
        queue: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        parent: str | None = None,
        id_prefix: str | None = None,
        executor: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[WorkflowStatus]:
        """Workflows, newest first, a page at a time: those for which everything that is given holds.

        `status`: one, or several of which it is one. `attributes`: it has at least these. `parent`: it is a
        child of this workflow. `executor`: the process of this name runs it, or ran it last. Of the times,
        `…_after` includes the moment itself. `cursor`: the page behind the one whose `.cursor` this is;
        workflows started meanwhile shift nothing.

        Raises:
            ValueError: if `limit` is less than 1 or more than 2,000,000,000, `cursor` comes from no list,
                `status` is none, or a time has no zone.
            InvalidName: if a text holds NUL or a lone surrogate.

        Example:
            >>> async def failed(client: Looking) -> list[str]:
            ...     page = await client.list(status="ERROR", attributes={"customer": 17})
            ...     return [workflow.id for workflow in page]
        """
        _check_number(limit, 1, MOST_ROWS, "limit is how many workflows a page has at most")
        shown = Filter(
            name=_keys.check_text(name, "name"),
            statuses=_codes(status),
            queue=_keys.check_text(queue, "queue"),
            attributes=None if attributes is None else encode_attributes(attributes),
            parent=_keys.check_text(parent, "parent"),
            id_prefix=_keys.check_text(id_prefix, "id_prefix"),
            executor=_keys.check_text(executor, "executor"),
            created_from=_aware(created_after),
            created_until=_aware(created_before),
            finished_from=_aware(finished_after),
            finished_until=_aware(finished_before),
            before=None if cursor is None else from_cursor(cursor),
        )
        engine = self.engine
        rows = await engine.ask(lambda c: list_workflows(c, engine.sql, shown, limit + 1), long=True)
        more = to_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return Page((to_status(engine, row) for row in rows[:limit]), more)

    async def steps(self, workflow_id: str) -> Sequence[StepInfo]:
        """The journal of a workflow: completed calls in their order, then those that wait.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        rows = await self._rows_of(workflow_id, lambda c: list_steps(c, self.engine.sql, workflow_id))
        return [self._step_info(workflow_id, row) for row in rows]

    def _step_info(self, workflow_id: str, row: StepRow) -> StepInfo:
        error = None
        # The error of a step that won a first was encoded under the step's name, which is not this row's.
        sealed = row.kind == "first" and row.target is None and self.engine.settings.codec is not None
        if row.outcome == Code.ERROR and row.output is not None and not sealed:
            encoded_for = row.target or row.origin or workflow_id
            context = self.engine.context(encoded_for, "error", "" if row.target else row.name)
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

    async def messages(
        self, workflow_id: str, *, after: int | None = None, limit: int = 1000
    ) -> Sequence[MessageInfo]:
        """The mailbox of a workflow, oldest first: who sent when, and which step has taken it [M10].

        `after`: only messages behind the one of this `.id`; at most `limit` of them.

        Raises:
            WorkflowNotFound: if there is none of this id.
            ValueError: if a number is out of range.

        Example:
            >>> async def waiting(client: Looking, order: str) -> int:
            ...     return sum(message.consumed_by is None for message in await client.messages(order))
        """
        _check_number(limit, 1, MOST_ROWS, "limit is how many messages are given at most")
        behind = -1 if after is None else after
        _check_number(behind, -MOST_ID, MOST_ID, "after is the id of a message")
        rows = await self._rows_of(
            workflow_id, lambda c: list_messages(c, self.engine.sql, workflow_id, behind, limit)
        )
        return [
            MessageInfo(
                id=row.id,
                topic=row.topic or None,
                sender=row.sender,
                created_at=row.created_at,
                consumed_by=row.consumed_by,
            )
            for row in rows
        ]

    async def streams(self, workflow_id: str) -> Sequence[StreamInfo]:
        """The streams of a workflow, by name: how many values each keeps, and whether it has been closed.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        rows = await self._rows_of(workflow_id, lambda c: list_streams(c, self.engine.sql, workflow_id))
        return [StreamInfo(name=row.key, length=row.length, closed=row.closed) for row in rows]

    async def _rows_of(
        self, workflow_id: str, look: Callable[[Connection], Awaitable[Sequence[R]]]
    ) -> Sequence[R]:
        """What a query finds of a workflow; if nothing, perhaps because there is no such workflow."""
        _keys.check_workflow_id(workflow_id)
        rows = await self.engine.ask(look)
        if not rows:
            await self._check_exists(workflow_id)
        return rows

    async def _check_exists(self, workflow_id: str) -> None:
        engine = self.engine
        if not await engine.ask(lambda c: workflow_exists(c, engine.sql, workflow_id)):
            raise WorkflowNotFound(workflow_id)

    def statistics(self) -> Statistics:
        """Counts of the machinery: batches, records, waiters, bells, connections."""
        return self.engine.statistics()


def _check_number(number: int, least: int, most: int, meaning: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise ValueError(f"{meaning}: a whole number from {least:,} to {most:,}")


def _codes(status: Status | str | Sequence[Status | str] | None) -> Sequence[int] | None:
    if status is None:
        return None
    return [Status(one).code for one in ([status] if isinstance(status, str) else status)]


def _aware(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError("a list needs moments with a time zone, such as datetime.now(timezone.utc)")
    return moment

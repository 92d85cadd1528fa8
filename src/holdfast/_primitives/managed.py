"""Managing other workflows from workflow code: recorded, so that a replay learns what came of it, and does
nothing a second time. After a crash in between it is done again, which changes nothing.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from holdfast import _keys
from holdfast._primitives.made import Made
from holdfast._primitives.managing import cancel_workflow, fork_workflow, resume_workflow, status_of
from holdfast._run.run import Run
from holdfast._store.commits import Answer
from holdfast.errors import WorkflowConflict, WorkflowNotFound
from holdfast.types import WorkflowStatus

T = TypeVar("T")


class Managed(Made[T]):
    """Something done to, or asked of, the workflow whose id is the name of the call."""

    __slots__ = ("name",)
    outcomes: ClassVar[tuple[type[Exception], ...]] = (WorkflowNotFound, WorkflowConflict, LookupError)

    def __init__(self, workflow_id: str) -> None:
        self.name = workflow_id


class Cancel(Managed[bool]):
    """Was it active?"""

    __slots__ = ()
    kind: ClassVar[str] = "cancel"
    type: object = bool

    async def make(self, run: Run) -> bool:
        return await cancel_workflow(run.executor.engine, self.name)


class Resume(Managed[bool]):
    """Had it ended?"""

    __slots__ = ()
    kind: ClassVar[str] = "resume"
    type: object = bool

    async def make(self, run: Run) -> bool:
        return await resume_workflow(run.executor.engine, self.name)


class Fork(Managed[Any]):
    """The handle of the fork. Its id is that of a child, unless it was given."""

    __slots__ = ("_handle_of", "_id", "from_step")
    kind: ClassVar[str] = "fork"
    type: object = str

    def __init__(
        self, workflow_id: str, from_step: str, id: str | None, handle_of: Callable[[str], Any]
    ) -> None:
        super().__init__(workflow_id)
        self._handle_of = handle_of
        self.from_step = from_step
        self._id = id

    def prepare(self, run: Run, step_id: str) -> None:
        _keys.check_name(self.from_step, "step id")
        self._id = _keys.check_workflow_id(self._id or _keys.child_id(run.workflow_id, step_id))

    async def make(self, run: Run) -> str:
        return await fork_workflow(run.executor.engine, self.name, self.from_step, self._id)

    def conclude(self, run: Run, answer: Answer) -> Any:
        return self._handle_of(super().conclude(run, answer))


class AskStatus(Managed[WorkflowStatus]):
    """How it stood."""

    __slots__ = ()
    kind: ClassVar[str] = "status"
    type: object = WorkflowStatus

    async def make(self, run: Run) -> WorkflowStatus:
        return await status_of(run.executor.engine, self.name)

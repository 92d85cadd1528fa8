"""Workflows as users define and call them: the decorator, bound calls, children, and where the running code
is.
"""

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Generic, Literal, NamedTuple, ParamSpec, TypeVar, get_args, overload
from uuid import uuid4

from holdfast import _keys
from holdfast._codec import Parameters, encode_attributes, names_of_caller
from holdfast._engine.submissions import Answers
from holdfast._observe import point
from holdfast._primitives.handles import Handle, outcome_of
from holdfast._run.context import Branch, StepScope, current_branch, scope
from holdfast._run.operation import Operation, Wait, call, claim, durable
from holdfast._run.registry import Definition
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code, Journaled, Owner, Start
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of
from holdfast.errors import ConfigurationError, NotInWorkflow, WorkflowConflict

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
MAX_RECOVERIES = 5
MOST_RECOVERIES = 1_000_000


class Call(Wait[R_co], Generic[R_co]):
    """A workflow with its arguments: give it to `start` or `run`, or await it in a workflow as a child."""

    __slots__ = ("args", "kwargs", "name", "returns", "target")
    named = False

    def __init__(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        target: Definition | None = None,
        returns: Any = Any,
    ) -> None:
        super().__init__(self._run_child)
        self.name: str = name
        self.returns: Any = returns
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.target: Definition | None = target

    def _run_child(self) -> Coroutine[Any, Any, R_co]:
        branch = current_branch(f"awaiting {self.name}(…)", "from outside, use Runtime.run or Runtime.start")
        return durable(branch.run, branch.next_step_id(), RunChild(self))

    def hand_over(self, branch: Branch) -> tuple[str, Operation[R_co]]:
        self._use()
        return branch.next_step_id(), RunChild(self)

    @property
    def result_type(self) -> Any:
        """The type of the result."""
        return self.returns if self.target is None else self.target.parameters.returns

    def __repr__(self) -> str:
        return f"<call of workflow {self.name!r}>"


class Workflow(Generic[P, R]):
    """A durable workflow; made by `@holdfast.workflow`. Calling it binds arguments and starts nothing."""

    def __init__(self, fn: Callable[P, Coroutine[Any, Any, R]], definition: Definition) -> None:
        self.fn = fn
        self.definition = definition
        self.name: str = definition.name
        functools.update_wrapper(self, fn)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Binds arguments.

        Raises:
            TypeError: if the function could not be called like this.
        """
        self.definition.parameters.check(args, kwargs)
        return Call(self.name, args, kwargs, target=self.definition)

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"


class WorkflowRef(Generic[P, R]):
    """A workflow whose code lives in another process: `WorkflowRef[[Order], str]("checkout")`.

    Example:
        >>> checkout = WorkflowRef[[int], str]("checkout")
        >>> checkout(17)
        <call of workflow 'checkout'>
    """

    def __init__(self, name: str) -> None:
        self.name: str = _keys.check_name(name, "workflow name")

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Binds arguments; whether they fit is found out where the workflow runs."""
        return Call(self.name, args, dict(kwargs), returns=self.result_type)

    @property
    def result_type(self) -> Any:
        """What stands in the brackets; `Any` without them."""
        alias = getattr(self, "__orig_class__", None)
        return get_args(alias)[1] if alias is not None else Any

    def __repr__(self) -> str:
        return f"<reference to workflow {self.name!r}>"


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str | None = None, timeout: float | timedelta | None = None, max_recoveries: int = MAX_RECOVERIES
) -> "WorkflowDecorator": ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    max_recoveries: int = MAX_RECOVERIES,
) -> Any:
    """Makes a durable workflow of an `async def`: after a crash it goes on where it was.

    Its code must be deterministic between durable calls: what reads the world belongs into steps. `name` is
    what is stored, the function's name by default. `timeout`, in seconds, ends it like a cancellation [W10].
    `max_recoveries`: after so many lives in which it took its process down before it got anywhere, the first
    included, it is QUARANTINED until somebody resumes it [W13].

    Raises:
        ConfigurationError: if an option makes no sense.

    Example:
        >>> @workflow
        ... async def greet(name: str) -> str:
        ...     return f"hello {name}"
    """
    decorate = WorkflowDecorator(name, seconds_of(timeout), max_recoveries, names_of_caller())
    return decorate if fn is None else decorate(fn)


class WorkflowDecorator:
    """`@workflow(…)` with its options, waiting for the function."""

    def __init__(
        self, name: str | None, timeout: float | None, max_recoveries: int, localns: dict[str, Any]
    ) -> None:
        if (
            isinstance(max_recoveries, bool)
            or not isinstance(max_recoveries, int)
            or not 1 <= max_recoveries <= MOST_RECOVERIES
        ):
            raise ConfigurationError(
                f"max_recoveries is how often a workflow may be claimed in vain: 1 to {MOST_RECOVERIES}"
            )
        self._name = name
        self._timeout = timeout
        self._max_recoveries = max_recoveries
        self._localns = localns

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]:
        if not inspect.iscoroutinefunction(fn):
            raise ConfigurationError(
                f"a workflow is an async def; {getattr(fn, '__qualname__', fn)!r} is not"
            )
        definition = Definition(
            fn,
            _keys.check_name(self._name or fn.__name__, "workflow name"),
            Parameters(fn, self._localns),
            timeout=self._timeout,
            max_recoveries=self._max_recoveries,
        )
        return Workflow(fn, definition)


def start(
    call_: Call[R],
    /,
    *,
    id: str | None = None,
    timeout: float | timedelta | None = None,
    attributes: Mapping[str, Any] | None = None,
    on_existing: Literal["attach", "raise"] = "attach",
) -> Wait[Handle[R]]:
    """Starts a child workflow and does not wait for it: its row and this call's record are one commit [W8].

    `id`: its id, `<this workflow>/<step id>` by default; a workflow of that id and name which exists already
    is attached to. `timeout`: seconds that it may take. `attributes`: a JSON object that `Runtime.list`
    searches.

    Raises:
        WorkflowConflict: if the id belongs to another workflow, or exists and `on_existing` is "raise".
        PayloadNotSerializable, PayloadTooLarge: before anything is written.
        NotInWorkflow: outside a workflow; there, use `Runtime.start`.

    Example:
        >>> async def parent(child: Call[str]) -> str:
        ...     handle = await start(child)
        ...     return await handle.result()
    """
    if not isinstance(call_, Call):
        raise TypeError("start takes a call of a workflow, such as start(checkout(order))")
    if id is not None:
        _keys.check_workflow_id(id)
    if on_existing not in ("attach", "raise"):
        raise ValueError('on_existing is "attach" or "raise"')
    searched = None if attributes is None else encode_attributes(attributes)
    branch = current_branch("start", "from outside, use Runtime.start or Client.start")
    exclusive = on_existing == "raise"
    return call(branch, StartChild(call_, id, seconds_of(timeout), searched, exclusive=exclusive))


class StartChild(Operation[Any]):
    """A child that is started."""

    __slots__ = ("_child", "_input", "attributes", "call", "child_id", "exclusive", "name", "timeout")
    kind: ClassVar[str] = "start"

    def __init__(
        self,
        call_: Call[Any],
        child_id: str | None,
        timeout: float | None,
        attributes: str | None = None,
        *,
        exclusive: bool = False,
    ) -> None:
        self.call = call_
        self.name = call_.name
        self.child_id = child_id
        self.timeout = timeout
        self.attributes = attributes
        self.exclusive = exclusive
        self._child = ""

    def prepare(self, run: Run, step_id: str) -> None:
        if step_id not in run.journal:
            self._child = self.child_id or _keys.check_workflow_id(_keys.child_id(run.workflow_id, step_id))
            engine, args, kwargs = run.executor.engine, self.call.args, self.call.kwargs
            self._input = engine.codec.encode_call(
                args, kwargs, engine.context(self._child, "input", self.name)
            )

    async def perform(self, run: Run, step_id: str) -> Answer:
        return await self.begin(run, step_id, self.row(run, step_id, awaited=False))

    def row(self, run: Run, step_id: str, *, awaited: bool) -> Journaled:
        """The row of this call; open if the child's end is awaited under it."""
        return Journaled(
            owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, target=self._child, open=awaited
        )

    async def begin(self, run: Run, step_id: str, row: Journaled | None) -> Answer:
        """Commits the child's row and this call's, and runs the child here if its code is here."""
        executor, child_id, data = run.executor, self._child, self._input
        definition = executor.registry.get(self.name)
        timeout = self.timeout if self.timeout is not None else definition.timeout if definition else None

        def launch(answers: Answers) -> None:
            if answers[0].code is not Code.VALUE:
                return
            if definition is not None:
                executor.launch(Run(executor, definition, Owner(child_id, 1)), data, timeout)
            if run.interrupted is not None and step_id in run.interrupted:
                # The family was cancelled while this was on its way, and knew nothing of the child [W10].
                executor.cancel_soon(child_id)

        point("start.before_commit")
        # The child exists once it is committed, and must run even if its parent has been cancelled by then.
        (answer,) = await run.commit(
            Start(
                owner=run.owner,
                step_id=step_id,
                id=child_id,
                name=self.name,
                token=uuid4(),
                here=definition is not None,
                # Nobody else gives a child the id that is implied.
                implied=None if self.exclusive and self.child_id is not None else self.child_id is None,
                input=data,
                timeout=timeout,
                attributes=self.attributes,
                journal=row,
            ),
            launch,
        )
        point("start.after_commit")
        code = Code.CONFLICT if answer.code is Code.CONFLICT else Code.VALUE
        return Answer(code, None, child_id)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        assert answer.note is not None
        if answer.code is Code.CONFLICT:
            raise WorkflowConflict(answer.note)
        return Handle(run.executor.engine, answer.note, self.call.result_type)


class RunChild(StartChild):
    """A child that is started and awaited in one call."""

    __slots__ = ()
    kind: ClassVar[str] = "run"

    def __init__(self, call_: Call[Any]) -> None:
        super().__init__(call_, None, None)

    def alternative(self, run: Run, step_id: str) -> Alternative:
        child_id = _keys.child_id(run.workflow_id, step_id)
        return Alternative(kind=self.kind, target=child_id, keys=(_keys.wake_key("end", child_id),))

    def waits(self, run: Run, step_id: str) -> bool:
        return step_id in run.journal  # then the child has been started

    async def perform(self, run: Run, step_id: str) -> Answer:
        child_id = _keys.child_id(run.workflow_id, step_id)
        if step_id not in run.journal:
            answer = await self.begin(run, step_id, self.row(run, step_id, awaited=True))
            if answer.code is not Code.VALUE:
                return answer
        claimed = Claim(step_id=step_id, kind=self.kind, name=self.name, target=child_id)
        answer = await claim(run, claimed, (_keys.wake_key("end", child_id),))
        return Answer(answer.code, answer.payload, child_id)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.note is None:  # the call itself was refused, before there was a child
            raise self.failure(run, answer)
        if answer.code is Code.CONFLICT:
            raise WorkflowConflict(answer.note)
        return outcome_of(run.executor.engine, answer.note, answer, self.call.result_type, itself=True)


class Current(NamedTuple):
    """Where the running code is; see `current`."""

    workflow_id: str
    workflow_name: str
    step_id: str | None
    """The step whose body runs; None in the workflow's own code."""
    attempt: int
    """Which try of the step this is, from 1; 1 in the workflow's own code."""
    recovering: bool
    """Has this workflow run before, in a process that ended?"""


def current() -> Current:
    """Where the running code is.

    Raises:
        NotInWorkflow: outside a workflow.

    Example:
        >>> async def work() -> str:
        ...     return current().workflow_id
    """
    found = scope.get()
    if found is None:
        raise NotInWorkflow("current() works inside a running workflow or a step of it")
    run = found.run
    step_id, attempt = (found.step_id, found.attempt) if isinstance(found, StepScope) else (None, 1)
    return Current(
        workflow_id=run.workflow_id,
        workflow_name=run.definition.name,
        step_id=step_id,
        attempt=attempt,
        recovering=run.recovering,
    )

"""Steps: functions whose results are recorded, so that they never run again once they have."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, overload

import anyio.to_thread

from holdfast import _clock, _keys
from holdfast._backoff import delays
from holdfast._codec import Parameters, check_type, names_of_caller
from holdfast._observe import logger, point
from holdfast._run.blocks import in_time
from holdfast._run.context import Branch, StepScope, scope
from holdfast._run.operation import Operation, Wait, call
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, Journaled
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of
from holdfast.errors import ConfigurationError, PayloadCodecError, PayloadError, StepFailed, WorkflowStopped

P = ParamSpec("P")
R = TypeVar("R")
RetryOn = type[BaseException] | Sequence[type[BaseException]] | Callable[[Exception], bool]
Accepts = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]
MOST_ATTEMPTS = 32_767


class Policy:
    """When and how often a step is tried again."""

    __slots__ = ("attempts", "base", "initial", "jitter", "maximum", "retry_on", "timeout")

    def __init__(
        self,
        attempts: int,
        initial: float | timedelta,
        maximum: float | timedelta,
        base: float,
        jitter: float | timedelta,
        retry_on: RetryOn,
        timeout: float | timedelta | None,
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= MOST_ATTEMPTS:
            raise ConfigurationError(
                f"attempts is how often a step is tried: a whole number from 1 to {MOST_ATTEMPTS}"
            )
        if base < 1:
            raise ConfigurationError("wait_exp_base must be at least 1")
        self.attempts: int = attempts
        self.initial: float = seconds_of(initial) or 0.0
        self.maximum: float = seconds_of(maximum) or 0.0
        self.base: float = base
        self.jitter: float = seconds_of(jitter) or 0.0
        self.retry_on: Accepts = _accepts(retry_on)
        self.timeout: float | None = seconds_of(timeout)

    def retries(self, error: Exception) -> bool:
        """Is this an error after which the step may be tried again?"""
        on = self.retry_on
        if isinstance(on, (type, tuple)):
            return isinstance(error, on)
        return bool(on(error))


def _accepts(retry_on: RetryOn) -> Accepts:
    found = tuple(retry_on) if isinstance(retry_on, Sequence) else retry_on
    types = found if isinstance(found, tuple) else (found,) if isinstance(found, type) else ()
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
        raise ConfigurationError("retry_on takes classes of exceptions")
    if not isinstance(found, type | tuple) and (not callable(found) or inspect.iscoroutinefunction(found)):
        raise ConfigurationError(
            "retry_on is a class of exceptions, a sequence of them, or a function of an exception"
        )
    return found


class Step(Generic[P, R]):
    """A function whose result is recorded, made by `@step`. In a workflow, calling it gives a `Wait`."""

    kind = "step"

    def __init__(self, fn: Callable[..., Any], name: str, parameters: Parameters, policy: Policy) -> None:
        self.fn = fn
        self.name = name
        self.parameters = parameters
        self.policy = policy
        self._is_coroutine = inspect.iscoroutinefunction(fn)
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Wait[R]:
        """In a workflow: a durable call. Outside, and inside another step: just runs the function."""
        self.check(args, kwargs)
        found = scope.get()
        if isinstance(found, Branch):
            return call(found, self.operation(args, kwargs))
        return Wait(lambda: self.invoke(args, kwargs))

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Could the function be called like this?"""
        self.parameters.check(args, kwargs)

    async def invoke(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the function once, in a worker thread if it is not a coroutine function."""
        if self._is_coroutine:
            return await self.fn(*args, **kwargs)
        # A thread cannot be interrupted; a cancelled workflow does not wait for it.
        call_it = functools.partial(self.fn, *args, **kwargs)
        return await anyio.to_thread.run_sync(call_it, abandon_on_cancel=True)

    def operation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "StepCall":
        """The durable call."""
        return StepCall(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


class StepCall(Operation[Any]):
    """One call of a step, with its tries."""

    __slots__ = ("args", "kwargs", "name", "step")
    kind: ClassVar[str] = "step"

    def __init__(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step: Step[..., Any] = step
        self.name: str = step.name
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs

    def prepare(self, run: Run, step_id: str) -> None:
        # Before the body has had its effect: what it gives must be something that can be read again.
        check_type(self.step.parameters.returns)

    def alternative(self, run: Run, step_id: str) -> Alternative | None:
        return Alternative(kind=self.kind)

    def waits(self, run: Run, step_id: str) -> bool:
        return False

    async def perform(self, run: Run, step_id: str) -> Answer:
        begun = _clock.monotonic()
        point("step.before_body")
        code, output, attempts = await in_time(run, self.tries(run, step_id))
        record = Journaled(
            owner=run.owner,
            step_id=step_id,
            kind=self.kind,
            name=self.name,
            outcome=code,
            output=output,
            attempts=attempts,
            elapsed=_clock.monotonic() - begun,
        )
        point("step.before_commit")
        await run.commit(record)
        point("step.after_commit")
        return Answer(code, output)

    async def tries(self, run: Run, step_id: str) -> tuple[Code, bytes, int]:
        """Runs the body until it succeeds or may not be tried again."""
        engine = run.executor.engine
        policy = self.step.policy
        pauses = delays(policy.initial, policy.maximum, policy.base, policy.jitter)
        errors: list[BaseException] = []
        final: BaseException | None = None
        before = cancellations()
        for attempt in range(1, policy.attempts + 1):
            try:
                value = await self._try(run, step_id, attempt)
                encoded = engine.codec.encode(value, engine.context(run.workflow_id, "step", self.name))
            except (PayloadCodecError, WorkflowStopped, KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except PayloadError as error:
                final = error
                break
            except Exception as error:
                run.check()
                if policy.attempts == 1 or not self._retries(run, step_id, error):
                    final = error
                    break
                errors.append(error)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and cancellations() > before:
                    raise
                run.check()
                final = error
                break
            else:
                return Code.VALUE, encoded, attempt
            if attempt < policy.attempts:
                logger.debug("step %s %r of workflow %r is tried again", step_id, self.name, run.workflow_id)
                await asyncio.sleep(next(pauses))
        if final is None:
            final = _used_up(self.name, errors)
        encoded = engine.codec.encode_error(final, engine.context(run.workflow_id, "error", self.name))
        return Code.ERROR, encoded, attempt

    def _retries(self, run: Run, step_id: str, error: Exception) -> bool:
        """May it be tried again after this error? A predicate that fails has not said so."""
        try:
            return self.step.policy.retries(error)
        except Exception as failure:
            logger.error(
                "step %s %r of workflow %r is not tried again: its retry_on has failed with %s",
                step_id,
                self.name,
                run.workflow_id,
                type(failure).__name__,
            )
            return False

    async def _try(self, run: Run, step_id: str, attempt: int) -> Any:
        """Runs the body once, in the step's own scope."""
        token = scope.set(StepScope(run, step_id, attempt))
        try:
            timeout = self.step.policy.timeout
            if timeout is None:
                return await self.step.invoke(self.args, self.kwargs)
            async with asyncio.timeout(timeout):
                return await self.step.invoke(self.args, self.kwargs)
        finally:
            scope.reset(token)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is not Code.VALUE:
            raise self.failure(run, answer)
        assert answer.payload is not None
        context = run.context(answer, "step", self.name)
        return run.executor.engine.codec.decode(answer.payload, self.step.parameters.returns, context)


def cancellations() -> int:
    """How often this task has been cancelled. A body may also raise `CancelledError` by itself, for a task of
    its own that was cancelled; that is an error of the body like any other.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _used_up(name: str, errors: list[BaseException]) -> StepFailed:
    failed = StepFailed(name, len(errors), errors)
    failed.__cause__ = errors[-1]
    return failed


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    fn: Callable[P, Coroutine[Any, Any, R]],
    /,
    *,
    attempts: int = ...,
    wait_initial: float | timedelta = ...,
    wait_max: float | timedelta = ...,
    wait_exp_base: float = ...,
    wait_jitter: float | timedelta = ...,
    retry_on: RetryOn = ...,
    timeout: float | timedelta | None = ...,
    name: str | None = ...,
) -> Step[P, R]: ...
@overload
def step(
    fn: Callable[P, R],
    /,
    *,
    attempts: int = ...,
    wait_initial: float | timedelta = ...,
    wait_max: float | timedelta = ...,
    wait_exp_base: float = ...,
    wait_jitter: float | timedelta = ...,
    retry_on: RetryOn = ...,
    timeout: float | timedelta | None = ...,
    name: str | None = ...,
) -> Step[P, R]: ...
@overload
def step(
    *,
    attempts: int = ...,
    wait_initial: float | timedelta = ...,
    wait_max: float | timedelta = ...,
    wait_exp_base: float = ...,
    wait_jitter: float | timedelta = ...,
    retry_on: RetryOn = ...,
    timeout: float | timedelta | None = ...,
    name: str | None = ...,
) -> "StepDecorator": ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    attempts: int = 1,
    wait_initial: float | timedelta = 0.1,
    wait_max: float | timedelta = 30.0,
    wait_exp_base: float = 2.0,
    wait_jitter: float | timedelta = 0.1,
    retry_on: RetryOn = Exception,
    timeout: float | timedelta | None = None,
    name: str | None = None,
) -> Any:
    """Makes a step of a function: its result is recorded, and once it is, the function never runs for this
    call again [W2].

    An `async def` runs in the event loop, a `def` in a worker thread. What it raises is tried again up to
    `attempts` times in all, after `wait_initial * wait_exp_base**n` and up to `wait_jitter` seconds, at most
    `wait_max`, if `retry_on` (types, or a predicate) accepts it. `timeout` is in seconds, for one try. The
    result is the decoded value, on the first run as on a replay.

    Raises (when called in a workflow):
        the step's own error: if it had one try, or `retry_on` declined it [W6].
        StepFailed: if more than one try was used up; `.errors` has all errors.
        PayloadNotSerializable: if its result cannot be stored.

    Example:
        >>> @step(attempts=3)
        ... async def fetch(url: str) -> str:
        ...     return "…"
    """
    policy = Policy(attempts, wait_initial, wait_max, wait_exp_base, wait_jitter, retry_on, timeout)
    decorate = StepDecorator(policy, name, names_of_caller())
    return decorate if fn is None else decorate(fn)


class StepDecorator:
    """`@step(…)` with its options, waiting for the function."""

    def __init__(self, policy: Policy, name: str | None, localns: dict[str, Any]) -> None:
        self._policy = policy
        self._name = name
        self._localns = localns

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Step[..., Any]:
        if isinstance(fn, Step):
            fn = fn.fn
        name = _keys.check_name(self._name or fn.__name__, "step name")
        return Step(fn, name, Parameters(fn, self._localns), self._policy)

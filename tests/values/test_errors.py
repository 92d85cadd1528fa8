"""Errors that cross processes keep type, text, attributes and remote traceback: from a step, a transaction, a
child, and from `result()` wherever it is asked for, on the first run as on a replay [W6, W7, W8].
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, within

GO = hf.Topic[None]("go")


class Declined(Exception):
    def __init__(self, code: int, *, why: str = "") -> None:
        super().__init__(f"declined with {code}")
        self.code, self.why = code, why


class Unknown(Exception):
    """Not registered."""


class Abort(BaseException):
    """Past every `except Exception`."""


class Model(pydantic.BaseModel):
    number: int


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def step_failed() -> Exception:
    return hf.StepFailed("charge", 2, [ValueError(1), Declined(2)])


def of_a_model() -> Exception:
    try:
        Model.model_validate({"number": "hunter2"})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


RAISED: dict[str, Callable[[], BaseException]] = {
    "builtin": lambda: ValueError("a", 2, None),
    "no text": lambda: LookupError(),
    "key": lambda: KeyError("k"),
    "registered": lambda: Declined(3, why="no money"),
    "unknown": lambda: Unknown("x"),
    "os": lambda: FileNotFoundError(errno.ENOENT, "No such file", "name.txt"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "caused": lambda: chained(RuntimeError("outer"), Declined(4)),
    "group": lambda: ExceptionGroup("two", [ValueError(1), ExceptionGroup("inner", [Declined(2)])]),
    "step failed": step_failed,
    "wait timeout": lambda: hf.WaitTimeout("too late"),
    "closed": lambda: hf.StreamClosed("tokens"),
    "trimmed": lambda: hf.StreamTrimmed(7),
    "not found": lambda: hf.WorkflowNotFound("w"),
    "too large": lambda: hf.PayloadTooLarge(5, 4),
    "remote": lambda: hf.RemoteError("app.Lost", "x"),
    "codec": lambda: hf.PayloadDecodeError("no", "$.a"),
    "model": of_a_model,
    "end of iteration": lambda: StopAsyncIteration("x"),
    "cancelled by itself": lambda: asyncio.CancelledError("by itself"),
    "past exceptions": lambda: Abort("x"),
    "not a number": lambda: ValueError(float("nan")),
    "opaque": lambda: ValueError(object),
    "surrogate": lambda: ValueError("a\ud800b"),
    "long": lambda: ValueError("x" * 100_000),
}


def look_of(error: BaseException | None) -> Any:  # noqa: ANN401
    """What there is to see of an error, without its traceback; comparable, and storable."""
    if error is None:
        return None
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else getattr(error, "errors", ())
    errors = inner if isinstance(inner, tuple) else ()
    attributes = {
        name: repr(value) for name, value in vars(error).items() if name in ("code", "why", "oldest")
    }
    return [
        type(error).__qualname__,
        str(error),
        repr(error.args) if not isinstance(error, BaseExceptionGroup) else "",
        attributes,
        look_of(error.__cause__),
        [look_of(each) for each in errors],
        len(getattr(error, "__notes__", ())),
    ]


def boom(case: str) -> None:
    raise RAISED[case]()


@hf.step
async def in_step(case: str) -> None:
    boom(case)


@hf.step
def in_thread(case: str) -> None:
    boom(case)


@hf.step(attempts=3, wait_initial=0.001, retry_on=ZeroDivisionError)
async def declined(case: str) -> None:
    boom(case)


@hf.transaction
async def in_transaction(connection: Connection, case: str) -> None:
    boom(case)


@hf.workflow
async def in_child(case: str) -> None:
    boom(case)


@hf.workflow
async def catches(case: str) -> list[Any]:
    seen = []
    calls: list[Callable[[str], Any]] = [in_step, declined, in_child]
    if issubclass(type(RAISED[case]()), Exception):
        calls += [in_transaction, in_thread]
    for call in calls:
        try:
            await call(case)
        except BaseException as error:
            if isinstance(error, hf.WorkflowStopped):
                raise
            seen.append([*look_of(error), f"in {boom.__name__}\n" in error.__notes__[0]])
    handle = await hf.start(in_child(case))
    try:
        await handle.result()
    except hf.WorkflowFailed as error:
        seen.append([*look_of(error.__cause__), True])
    await GO.recv()
    return seen


@pytest.mark.parametrize("case", RAISED)
async def test_w6_an_error_is_the_same_wherever_it_comes_from(
    processes: Processes, waits: Waits, dsn: str, case: str
) -> None:
    found = []
    for number in range(2):
        async with hf.Runtime(dsn, workflows=[catches, in_child], errors=[Declined]) as rt:
            if not number:
                await rt.start(catches(case), id="w")
                await waits.on("message", "w", "go")
            else:
                await rt.send("w", None, GO)
                found = await within(20, rt.handle("w").result())
                with pytest.raises(hf.WorkflowFailed) as caught:
                    await within(10, rt.run(in_child(case), id="c"))
                found.append([*look_of(caught.value.__cause__), True])
    async with hf.Client(dsn, errors=[Declined]) as client:
        with pytest.raises(hf.WorkflowFailed) as caught:
            await client.handle("c").result()
        found.append([*look_of(caught.value.__cause__), True])
    assert len(found) >= 6
    assert [look for look in found if look != found[0]] == []
    # And the same as what was raised, where that can be made again.
    raised = look_of(RAISED[case]())
    if case in ("unknown", "model", "past exceptions"):
        assert found[0][0] == "RemoteError"
        assert found[0][1].endswith(raised[1])
    elif case in ("long", "opaque", "surrogate"):
        assert found[0][0] == raised[0]
        assert len(found[0][1]) <= 4096
    else:
        assert without_notes(found[0][:-1]) == without_notes(raised)


def without_notes(look: list[Any]) -> list[Any]:
    *rest, cause, errors, _ = look
    return [*rest, cause and without_notes(cause), [without_notes(each) for each in errors]]


@hf.step
def stops() -> None:
    raise StopIteration(3)


@hf.step
async def gives_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(fails_at_once())


async def fails_at_once() -> None:
    raise Declined(5)


async def cancels_its_own() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


@hf.step
async def awaits_what_it_has_cancelled() -> None:
    await cancels_its_own()


@hf.workflow
async def goes_on() -> list[str]:
    """Errors that might be taken for something else; what comes after them is replayed all the same."""
    seen = []
    for call in (stops, gives_group, awaits_what_it_has_cancelled):
        try:
            await call()
        except BaseException as error:
            if isinstance(error, hf.WorkflowStopped):
                raise
            seen.append(type(error).__name__)
            await hf.set_event("seen", seen)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(in_branch(1))
            group.create_task(in_branch(2))
    except* Declined as group_of_them:
        seen.append(f"{len(group_of_them.exceptions)} of {type(group_of_them).__name__}")
    await GO.recv()
    return seen


async def in_branch(code: int) -> None:
    await in_step("registered")


async def test_w6_errors_that_might_be_taken_for_something_else(
    processes: Processes, waits: Waits, dsn: str
) -> None:
    expected: list[list[str]] = []
    async with hf.Runtime(dsn, workflows=[goes_on], errors=[Declined]) as rt:
        await rt.start(goes_on(), id="w")
        await waits.on("message", "w", "go")
        expected.append(await rt.get_event("w", "seen"))
    async with hf.Runtime(dsn, workflows=[goes_on], errors=[Declined]) as rt:
        await rt.send("w", None, GO)
        told = await within(10, rt.handle("w").result())
    assert expected[0][1:] == ["ExceptionGroup", "CancelledError"]
    assert told[:3] == expected[0]
    assert told[3] == "1 of ExceptionGroup"


async def test_w7_an_error_of_another_process_shows_where_it_was(processes: Processes, dsn: str) -> None:
    """With lines of source; without what variables held."""
    secret = secrets.token_hex(8)
    async with hf.Runtime(dsn, workflows=[keeps_a_secret], errors=[Declined]) as rt:
        handle = await rt.start(keeps_a_secret(secret))
        async with hf.Client(dsn, errors=[Declined]) as client:
            with pytest.raises(hf.WorkflowFailed) as caught:
                await within(10, client.handle(handle.id).result())
    cause = caught.value.__cause__
    assert isinstance(cause, Declined)
    (note,) = cause.__notes__
    assert "in keeps_a_secret\n    await has_a_secret(held)" in note
    assert "in has_a_secret\n    raise Declined(1)" in note
    assert secret not in note
    assert len(note) < 9000


@hf.workflow
async def keeps_a_secret(held: str) -> None:
    await has_a_secret(held)


@hf.step
async def has_a_secret(held: str) -> None:
    raise Declined(1)


async def test_w6_an_argument_that_does_not_fit_is_named_and_not_shown(processes: Processes) -> None:
    rt = await processes.runtime(takes_a_number)
    for args, kwargs, named in (
        (("hunter2",), {}, "argument `number`: Expected `int`, got `str`"),
        ((), {"number": [1, "hunter2"]}, "argument `number`: Expected `int`, got `array`"),
        ((1, "hunter2"), {}, "argument `rest`: Expected `int`"),
        ((1,), {"other": "hunter2"}, "argument `other`: Expected `int`"),
        ((), {}, "do not fit takes_a_number()"),
    ):
        with pytest.raises(hf.WorkflowFailed) as caught:
            await within(10, rt.run(hf.WorkflowRef[..., int]("takes_a_number")(*args, **kwargs)))
        cause = caught.value.__cause__
        assert isinstance(cause, hf.PayloadDecodeError)
        assert named in str(cause)
        assert "hunter2" not in str(cause)
    handle = await rt.start(takes_a_number(1))
    with pytest.raises(hf.PayloadDecodeError):
        await rt.handle(hf.WorkflowRef[..., list[str]]("takes_a_number"), handle.id).result()


@hf.workflow
async def takes_a_number(number: int, *rest: int, **others: int) -> int:
    return number

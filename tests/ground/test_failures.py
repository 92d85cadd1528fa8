"""Exceptions that are stored come back as themselves where their class is known, and never by an import."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import zlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import errors
from holdfast._codec import Codec, ErrorRegistry
from holdfast.errors import ConfigurationError, PayloadDecodeError, RemoteError, StepFailed
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="error", name="charge")
CODEC = Codec("holdfast", 100)


class Declined(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"declined with {code}")
        self.code = code


class Wanting(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"wanting {code}")


class Plain(Exception):
    pass


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


KNOWN = ErrorRegistry([Declined, Wanting, Plain])


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException, registry: ErrorRegistry = KNOWN) -> BaseException:
    return CODEC.decode_error(CODEC.encode_error(raised(error), CONTEXT), CONTEXT, registry)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 2, None, [1.5]),
        KeyError("k"),
        StopAsyncIteration(),
        FileNotFoundError(2, "No such file"),
        asyncio.CancelledError(),
        TimeoutError("late"),
        Plain("x"),
        Plain(),
        RemoteError("app.Lost", "x"),
        errors.WaitTimeout("late"),
        errors.StreamClosed("tokens"),
        errors.NotInWorkflow("call rt.send()"),
        errors.WorkflowFailed("w"),
        errors.WorkflowCancelled("w"),
        errors.WorkflowNotFound("w"),
        errors.WorkflowFinished("w", "over"),
        errors.WorkflowConflict("w"),
        errors.PayloadNotSerializable("no", "$.a"),
        errors.PayloadTooLarge(5, 4),
        errors.PayloadDecodeError("no", "$.a"),
    ],
    ids=repr,
)
def test_w6_a_known_error_comes_back_as_itself(error: BaseException) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert {k: v for k, v in vars(back).items() if k != "__notes__"} == vars(error)


def test_w6_a_registered_error_keeps_text_and_attributes() -> None:
    back = there_and_back(Declined(3))
    assert isinstance(back, Declined)
    assert str(back) == "declined with 3"
    assert back.code == 3


@pytest.mark.parametrize(
    "error", [Declined(3), Wanting(code=3)], ids=["not registered", "another constructor"]
)
def test_w6_what_cannot_be_rebuilt_is_a_remote_error(error: Exception) -> None:
    back = there_and_back(error, ErrorRegistry([Wanting]))
    assert isinstance(back, RemoteError)
    assert back.type_name == f"{__name__}.{type(error).__qualname__}"
    assert back.message == str(error)


def test_k2_no_class_is_imported_by_a_name_in_data() -> None:
    for name in (
        "os.system",
        "subprocess.CalledProcessError",
        "zlib.error",
        "builtins.print",
        "SystemExit",
        "print",
    ):
        data = json.dumps({"type": name, "message": "m", "args": ["true"]}).encode()
        back = CODEC.decode_error(data, CONTEXT, KNOWN)
        assert type(back) is RemoteError
        assert (back.type_name, back.message) == (name, "m")


def test_w6_step_failed_comes_back_with_every_error() -> None:
    back = there_and_back(
        StepFailed("charge", 3, [raised(ValueError(1)), raised(Declined(2)), raised(KeyError(3))])
    )
    assert isinstance(back, StepFailed)
    assert (back.step, back.attempts) == ("charge", 3)
    assert [type(each) for each in back.errors] == [ValueError, Declined, KeyError]
    assert back.__cause__ is back.errors[-1]
    assert str(back).endswith("the last error was KeyError")


def test_w6_groups_come_back_with_what_they_group() -> None:
    back = there_and_back(ExceptionGroup("two", [ValueError(1), ExceptionGroup("inner", [Declined(2)])]))
    assert isinstance(back, ExceptionGroup)
    assert back.message == "two"
    inner = back.exceptions[1]
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(inner.exceptions[0], Declined)


def test_w6_causes_come_back_to_a_depth_of_three() -> None:
    error: Exception = ValueError(0)
    for depth in range(1, 6):
        outer = ValueError(depth)
        outer.__cause__ = error
        error = outer
    back: BaseException | None = there_and_back(error)
    seen = []
    while back is not None:
        seen.append(back.args[0])
        back = back.__cause__
    assert seen == [5, 4, 3, 2]


def test_w6_the_remote_traceback_is_a_note() -> None:
    def deep() -> None:
        raise ValueError("x")

    def handler() -> None:
        try:
            deep()
        except ValueError:
            raise KeyError("y")  # noqa: B904 - the context is what is tested

    with pytest.raises(KeyError) as caught:
        handler()
    caught.value.add_note("a note of the user")
    back = CODEC.decode_error(CODEC.encode_error(caught.value, CONTEXT), CONTEXT, KNOWN)
    (note,) = back.__notes__
    assert note.startswith("Remote traceback:\n")
    for part in (
        "in deep\n    raise ValueError",
        "ValueError: x",
        "During handling of",
        "KeyError: 'y'",
        "a note of",
    ):
        assert part in note


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x" * 1_000_000),
        ValueError(*["x"] * 100_000),
        Plain("\x00" * 1_000_000),
        StepFailed("s", 5000, [ValueError("ü" * 10_000) for _ in range(5000)]),
        ExceptionGroup("g", [ExceptionGroup("h", [ValueError("x" * 9000)] * 50)] * 50),
    ],
    ids=["text", "arguments", "control characters", "tries", "groups"],
)
def test_k2_what_is_stored_of_an_error_is_bounded(error: Exception) -> None:
    error.__dict__["attribute"] = "y" * 1_000_000
    data = CODEC.encode_error(error, CONTEXT)
    assert len(data) <= 256 * 1024
    assert type(CODEC.decode_error(data, CONTEXT, KNOWN)) is type(error)


def test_w6_the_last_errors_are_the_ones_that_are_kept() -> None:
    back = there_and_back(StepFailed("s", 50, [ValueError(n) for n in range(50)]))
    assert isinstance(back, StepFailed)
    assert [each.args[0] for each in back.errors] == list(range(40, 50))
    assert back.attempts == 50


@pytest.mark.parametrize(
    ("error", "type", "text"),
    [
        (Broken(), RemoteError, "its text cannot be shown"),
        (ValueError("a\ud800b"), ValueError, "a\\ud800b"),
        (ValueError(Decimal("1.5")), ValueError, "1.5"),
        (ValueError(float("nan")), ValueError, "nan"),
        (ValueError(10**5000 // 10**4990), ValueError, "1000000000"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError, "can't decode byte"),
        (ValueError(object), ValueError, "<class 'object'>"),
    ],
)
def test_k2_storing_an_error_never_fails(error: Exception, type: type[Exception], text: str) -> None:
    back = there_and_back(error)
    assert isinstance(back, type)
    assert text in str(back)


def test_k2_a_cycle_of_causes_ends() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert isinstance(there_and_back(error), ValueError)


def test_k3_errors_go_through_the_payload_codec() -> None:
    class Zip:
        def encode(self, data: bytes, context: PayloadContext) -> bytes:
            assert context == CONTEXT
            return zlib.compress(data)

        def decode(self, data: bytes, context: PayloadContext) -> bytes:
            return zlib.decompress(data)

    codec = Codec("holdfast", 100, Zip())
    data = codec.encode_error(ValueError("hunter2"), CONTEXT)
    assert b"hunter2" not in data
    assert str(codec.decode_error(data, CONTEXT, KNOWN)) == "hunter2"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x"), "ValueError: x"),
        (ValueError(), "ValueError"),
        (StepFailed("s", 2), "StepFailed: step 's'"),
    ],
)
def test_an_error_can_be_described_without_being_rebuilt(error: Exception, line: str) -> None:
    assert CODEC.describe_error(CODEC.encode_error(error, CONTEXT), CONTEXT).startswith(line)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"hunter2", b'{"type":3}', b'"\xff"'])
def test_k4_bytes_that_hold_no_error_are_a_decode_error(data: bytes) -> None:
    with pytest.raises(PayloadDecodeError) as caught:
        CODEC.decode_error(data, CONTEXT, KNOWN)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("classes", [[3], [int], ["ValueError"]])
def test_only_exception_classes_can_be_registered(classes: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match="takes exception classes"):
        ErrorRegistry(classes)


def test_two_classes_of_one_name_cannot_both_be_registered() -> None:
    other = type("Plain", (Exception,), {"__module__": __name__})
    with pytest.raises(ConfigurationError, match=r"two classes called .*Plain"):
        ErrorRegistry([Plain, Plain, other])


class Slotted(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ByKeyword(Exception):
    def __init__(self, *, code: int, when: dt.date) -> None:
        super().__init__(f"{code} on {when}")
        self.code, self.when = code, when


class Reduced(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code, self.why = code, why

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (self.code, self.why)


class BadReduce(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("no")


@attrs.define
class Attrs(Exception):
    code: int
    detail: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Frozen(Exception):
    code: int


@dataclass
class Data(Exception):
    code: int
    raw: bytes = b""


class Unshowable(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


class Unlookable(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]  # noqa: ANN401
        raise RuntimeError("nothing to be seen here")


class Endless(Exception):
    def __str__(self) -> str:
        return str(self)


ODD = ErrorRegistry(
    [Slotted, ByKeyword, Reduced, BadReduce, Attrs, Frozen, Data, Unshowable, Unlookable, Endless]
)


@pytest.mark.parametrize(
    "error",
    [
        Slotted(3),
        ByKeyword(code=3, when=dt.date(2020, 1, 2)),
        Reduced(3, "why"),
        BadReduce("a"),
        Attrs(3, {"a": [1, (2.5, b"x")]}),
        Frozen(code=3),
        Data(3, b"\xff"),
        FileNotFoundError(2, "No such file", "name.txt"),
        OSError(28, "No space left", "a", None, "b"),
        BlockingIOError(11, "later", 5),
        UnicodeEncodeError("ascii", "\u00e9", 0, 1, "bad"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="m", path="p"),
        KeyError(("a", 1)),
        ValueError(b"x", Decimal("1.50"), UUID(int=1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), {"a": (1,)}),
        ValueError(float("inf"), -0.0),
        StopIteration(5),
        SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)),
        AssertionError(),
        errors.StreamTrimmed(7),
        errors.NondeterminismError("w", "1", "a", "b"),
        errors.RecordRejected("no"),
        errors.InvalidName("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_w6_odd_errors_come_back_as_themselves(error: Exception) -> None:
    back = there_and_back(error, ODD)
    assert type(back) is type(error)
    assert back.args == error.args
    assert repr(back.args) == repr(error.args)
    assert str(back) == str(error)
    for name in (
        "code",
        "when",
        "why",
        "raw",
        "detail",
        "filename",
        "filename2",
        "name",
        "path",
        "value",
        "errno",
    ):
        assert getattr(back, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    "error", [Unshowable("x"), Unlookable("x"), Endless("x")], ids=["shown", "seen", "told"]
)
def test_k2_an_error_that_cannot_be_looked_at_is_stored_all_the_same(error: Exception) -> None:
    for registry in (ODD, KNOWN):
        assert isinstance(there_and_back(error, registry), (type(error), RemoteError))


def test_w6_the_context_of_an_error_comes_back_unless_it_is_suppressed() -> None:
    def fail(*, quietly: bool) -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            if quietly:
                raise ValueError("outer") from None
            raise ValueError("outer")  # noqa: B904 - the context is what is tested

    for quietly in (False, True):
        with pytest.raises(ValueError, match="outer") as caught:
            fail(quietly=quietly)
        back = CODEC.decode_error(CODEC.encode_error(caught.value, CONTEXT), CONTEXT, KNOWN)
        assert back.__cause__ is None
        assert back.__suppress_context__ is quietly
        assert (back.__context__ is None) is quietly
        if not quietly:
            assert isinstance(back.__context__, KeyError)
            assert "KeyError: 'inner'" in back.__notes__[0]


def test_w6_a_class_of_the_user_s_that_is_called_like_one_of_python_s_is_not_taken_for_it() -> None:
    other = type("ValueError", (ValueError,), {"__module__": "app"})
    back = there_and_back(other("x"))
    assert isinstance(back, RemoteError)
    assert back.type_name == "app.ValueError"
    assert type(there_and_back(other("x"), ErrorRegistry([other]))) is other


def test_k3_what_says_that_a_process_cannot_read_is_never_rebuilt() -> None:
    """It would park a workflow that only heard of it."""
    back = there_and_back(errors.PayloadCodecError("no key", "w", "event", "e"))
    assert isinstance(back, RemoteError)
    assert back.type_name == "holdfast.errors.PayloadCodecError"


@settings(deadline=None)
@given(
    data=st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from(["ValueError", "ExceptionGroup", "OSError"]),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "message", "args", "init", "state", "cause", "errors", "float", "tuple"]
                ),
                inner,
            )
        ),
        max_leaves=15,
    )
)
def test_k2_whatever_is_stored_is_an_error_or_is_refused(data: object) -> None:
    try:
        back = CODEC.decode_error(json.dumps(data).encode(), CONTEXT, KNOWN)
    except PayloadDecodeError:
        return
    assert isinstance(back, BaseException)


def test_k2_causes_without_end_are_refused() -> None:
    data = b'{"type":"ValueError","cause":' * 900 + b"null" + b"}" * 900
    with contextlib.suppress(PayloadDecodeError):
        assert isinstance(CODEC.decode_error(data, CONTEXT, KNOWN), ValueError)

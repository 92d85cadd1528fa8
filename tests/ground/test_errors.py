"""The tree of errors: what they also are, and what they say."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

from holdfast import errors

ALSO = {
    errors.ConfigurationError: ValueError,
    errors.RegistrationError: errors.ConfigurationError,
    errors.NotInWorkflow: RuntimeError,
    errors.NotRunning: RuntimeError,
    errors.InvalidName: ValueError,
    errors.PayloadNotSerializable: TypeError,
    errors.PayloadTooLarge: ValueError,
    errors.PayloadDecodeError: errors.PayloadError,
    errors.PayloadCodecError: errors.PayloadDecodeError,
    errors.SchemaMissing: errors.SchemaError,
    errors.SchemaTooOld: errors.SchemaError,
    errors.SchemaTooNew: errors.SchemaError,
    errors.WorkflowNotFound: LookupError,
    errors.WorkflowConflict: errors.WorkflowError,
    errors.WorkflowFinished: errors.WorkflowError,
    errors.WorkflowFailed: errors.WorkflowError,
    errors.WorkflowCancelled: errors.WorkflowError,
    errors.WorkflowQuarantined: errors.WorkflowError,
    errors.WaitTimeout: TimeoutError,
    errors.DatabaseUnavailable: ConnectionError,
}

ONE_OF_EACH = [
    errors.NotInWorkflow("call rt.send() instead"),
    errors.PayloadNotSerializable("no", "$.a[3]"),
    errors.PayloadTooLarge(5, 4),
    errors.PayloadDecodeError("no", "$.a"),
    errors.PayloadCodecError("no key", "w", "event", "e"),
    errors.WorkflowNotFound("w"),
    errors.WorkflowConflict("w", "the id belongs to `other`"),
    errors.WorkflowFailed("w"),
    errors.NondeterminismError("w", "3", "step `a`", "recv of `b`"),
    errors.StepFailed("charge", 3),
    errors.WaitTimeout(),
    errors.StreamClosed("tokens"),
    errors.StreamTrimmed(7),
    errors.DatabaseUnavailable(),
    errors.RemoteError("app.Declined", "no money"),
]


@pytest.mark.parametrize(("cls", "other"), ALSO.items())
def test_errors_are_also_what_users_would_catch(cls: type[Exception], other: type[Exception]) -> None:
    assert issubclass(cls, other)
    assert issubclass(cls, errors.HoldfastError)


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_errors_survive_being_copied_and_say_something(error: Exception) -> None:
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own bytes
        assert type(copied) is type(error)
        assert str(copied) == str(error) != ""
        assert vars(copied) == vars(error)


def test_w11_being_stopped_is_neither_an_error_nor_a_cancellation() -> None:
    assert not issubclass(errors.WorkflowStopped, Exception)
    assert not issubclass(errors.WorkflowStopped, asyncio.CancelledError)


def test_w5_nondeterminism_names_both_sides() -> None:
    text = str(errors.NondeterminismError("w-1", "5.0.2", "step `a`", "recv of `b`"))
    assert all(part in text for part in ("'w-1'", "5.0.2", "step `a`", "recv of `b`", "hf.patched"))


def test_w6_step_failed_has_the_last_error_as_its_cause() -> None:
    first, last = ValueError("hunter2"), KeyError("hunter2")
    error = errors.StepFailed("charge", 2, [first, last])
    assert error.errors == (first, last)
    assert error.__cause__ is last
    assert str(error) == "step 'charge' failed after 2 attempts; the last error was KeyError"


def test_workflow_errors_carry_the_id() -> None:
    assert errors.WorkflowNotFound("w").workflow_id == "w"
    assert str(errors.WorkflowNotFound("w")) == "no workflow has the id 'w'"
    assert str(errors.WorkflowConflict("w", "taken")) == "taken"


def test_s3_a_trimmed_stream_says_what_is_left() -> None:
    assert errors.StreamTrimmed(7).oldest == 7
    assert "7" in str(errors.StreamTrimmed(7))

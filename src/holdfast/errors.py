"""Every exception that leaves the library, and the tree they hang on.

Messages say what to do next. They name workflows, steps and types, never a payload, a DSN or a password.
Each error keeps its constructor's arguments as `.args`, so that it can be copied and rebuilt from a record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "ConfigurationError",
    "DatabaseUnavailable",
    "HoldfastError",
    "InvalidName",
    "NondeterminismError",
    "NotInWorkflow",
    "NotRunning",
    "PayloadCodecError",
    "PayloadDecodeError",
    "PayloadError",
    "PayloadNotSerializable",
    "PayloadTooLarge",
    "RegistrationError",
    "RemoteError",
    "RequestRejected",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "StepFailed",
    "StreamClosed",
    "StreamTrimmed",
    "TokenRejected",
    "WaitTimeout",
    "WorkflowCancelled",
    "WorkflowConflict",
    "WorkflowError",
    "WorkflowFailed",
    "WorkflowFinished",
    "WorkflowNotFound",
    "WorkflowQuarantined",
    "WorkflowStopped",
]


class HoldfastError(Exception):
    """Base of every error of this library: `except hf.HoldfastError` catches them all."""


class ConfigurationError(HoldfastError, ValueError):
    """A setting, an argument of the constructor or an environment variable makes no sense."""


class RegistrationError(ConfigurationError):
    """Two definitions share one name, or a name is used that nobody defines."""


class NotInWorkflow(HoldfastError, RuntimeError):
    """A durable call was made where no workflow runs; the message names the call to make instead."""


class NotRunning(HoldfastError, RuntimeError):
    """A runtime or client was used before it was entered, or after it was left."""


class InvalidName(HoldfastError, ValueError):
    """A workflow id, topic, key or name is empty, too long, or holds NUL or a lone surrogate [K1]."""


class PayloadError(HoldfastError):
    """Base of the errors about values that are stored."""


class PayloadNotSerializable(PayloadError, TypeError):
    """A value cannot be stored as JSON; `.path` says where inside it, like `$.items[3].price` [K2].

    The value itself is in neither the message nor the attributes [K4].
    """

    def __init__(self, reason: str, path: str = "$") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.reason} - at `{self.path}`"


class PayloadTooLarge(PayloadError, ValueError):
    """A value takes more bytes of JSON than `Settings.max_payload` allows; raised before any I/O [K2]."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"payload of {self.size} bytes is over the limit of {self.limit} bytes; "
            f"store it elsewhere and pass a reference, or raise Settings.max_payload"
        )


class PayloadDecodeError(PayloadError):
    """Stored bytes do not fit the type asked for; `.path` says where, the message says what was expected."""

    def __init__(self, reason: str, path: str = "$") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.reason} - at `{self.path}`"


class PayloadCodecError(PayloadDecodeError, ConfigurationError):
    """`Settings.codec` failed: another key, another codec or none, or one that gives no bytes [K3].

    It is the process that is wrong, not the payload: a workflow that meets this is not failed but parked, and
    goes on in a process whose codec fits. `.workflow_id`, `.kind` and `.name` say which payload it is about.
    """

    def __init__(self, reason: str, workflow_id: str = "", kind: str = "", name: str = "") -> None:
        super().__init__(reason)
        self.args: tuple[Any, ...] = (reason, workflow_id, kind, name)
        self.workflow_id = workflow_id
        self.kind = kind
        self.name = name

    def __str__(self) -> str:
        named = f"{self.kind} {self.name!r}" if self.name else self.kind
        return f"{self.reason} - the {named} of workflow {self.workflow_id!r}"


class SchemaError(HoldfastError):
    """The tables in the database are not the ones this version works with; the message names the cure."""


class SchemaMissing(SchemaError):
    """The schema, or its tables, do not exist."""


class SchemaTooOld(SchemaError):
    """The schema lacks migrations that this version of the library needs."""


class SchemaTooNew(SchemaError):
    """The schema was migrated by a newer version of the library than this one."""


class WorkflowError(HoldfastError):
    """Base of the errors about one workflow, named by `.workflow_id`."""

    _default: ClassVar[str] = "workflow {id!r}: operation failed"

    def __init__(self, workflow_id: str, message: str | None = None) -> None:
        super().__init__(*(workflow_id, message)[: 1 if message is None else 2])
        self.workflow_id = workflow_id
        self.message = message

    def __str__(self) -> str:
        return self._default.format(id=self.workflow_id) if self.message is None else self.message


class WorkflowNotFound(WorkflowError, LookupError):
    """No workflow has this id."""

    _default = "no workflow has the id {id!r}"


class WorkflowConflict(WorkflowError):
    """The id belongs to another workflow, or exists and `on_existing="raise"` was given [W1]."""

    _default = "workflow {id!r} exists already"


class WorkflowFinished(WorkflowError):
    """The workflow has ended: it takes no messages and sets no more events [M2] [E2]."""

    _default = "workflow {id!r} has ended"


class WorkflowFailed(WorkflowError):
    """The awaited workflow ended with an error: that error, rebuilt, is the `__cause__`."""

    _default = "workflow {id!r} failed; its error is the cause of this one"


class WorkflowCancelled(WorkflowError):
    """The awaited workflow was cancelled; by its own `timeout=` if the cause is a `TimeoutError` [W10]."""

    _default = "workflow {id!r} was cancelled"


class WorkflowQuarantined(WorkflowError):
    """The workflow took its process down too often and is parked until it is resumed [W13]."""

    _default = "workflow {id!r} is quarantined: resume it once the reason is mended"


class NondeterminismError(HoldfastError):
    """On replay the code made another call than the one recorded under this step id [W5].

    The workflow is parked, not failed: it goes on as soon as code that fits its journal runs.
    """

    def __init__(self, workflow_id: str, step_id: str, recorded: str, found: str) -> None:
        super().__init__(workflow_id, step_id, recorded, found)
        self.workflow_id = workflow_id
        self.step_id = step_id
        self.recorded = recorded
        self.found = found

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r}, step {self.step_id}: the journal has {self.recorded}, "
            f"the code made {self.found}; guard changes for running workflows with hf.patched()"
        )


class StepFailed(HoldfastError):
    """A step used up its retries: the last error is the `__cause__`, all of them are `.errors` [W6]."""

    def __init__(self, step: str, attempts: int, errors: Iterable[BaseException] = ()) -> None:
        super().__init__(step, attempts)
        self.step = step
        self.attempts = attempts
        self.errors: tuple[BaseException, ...] = ()
        self.adopt(errors)

    def adopt(self, errors: Iterable[BaseException]) -> None:
        """Take these as `.errors`, and the last of them as the cause."""
        self.errors = tuple(errors)
        if self.errors:
            self.__cause__: BaseException | None = self.errors[-1]

    def __str__(self) -> str:
        last = f"; the last error was {type(self.errors[-1]).__qualname__}" if self.errors else ""
        return f"step {self.step!r} failed after {self.attempts} attempts{last}"


class WaitTimeout(HoldfastError, TimeoutError):
    """A wait reached its deadline before what it waited for happened. Nothing was consumed."""

    def __init__(self, message: str = "the wait timed out") -> None:
        super().__init__(message)


class RequestRejected(HoldfastError):
    """The workflow that was asked has rejected the request, with this text and no error of its own."""


class TokenRejected(HoldfastError, PermissionError):
    """The token sends nothing: expired, forged, used already, or for a workflow that takes no messages.

    Which of these it is, is not told: whoever holds a token learns nothing from trying.
    """

    def __init__(self, message: str = "this token is not valid, or no longer") -> None:
        super().__init__(message)


class StreamClosed(HoldfastError):
    """The stream was closed: nothing can be written to it any more [S3]."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream

    def __str__(self) -> str:
        return f"stream {self.stream!r} is closed"


class StreamTrimmed(HoldfastError):
    """The values asked for are no longer kept: `.oldest` is the first offset that still is."""

    def __init__(self, oldest: int) -> None:
        super().__init__(oldest)
        self.oldest = oldest

    def __str__(self) -> str:
        return f"the stream no longer keeps these values; its oldest offset is {self.oldest}"


class DatabaseUnavailable(HoldfastError, ConnectionError):
    """The database did not answer for `Settings.database_patience` seconds."""

    def __init__(self, message: str = "the database does not answer") -> None:
        super().__init__(message)


class RecordRejected(HoldfastError):
    """The database refused what was to be written: the message names the rule, never the data."""


class RemoteError(HoldfastError):
    """An error from a step or workflow whose class this process cannot rebuild.

    Pass the class in `Runtime(errors=[...])` to get it back as itself. `.type_name` is the full name of the
    class, `.message` its text; the remote traceback is a note of this error.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class WorkflowStopped(BaseException):
    """Raised by durable calls when this process shuts down or has lost the workflow [W11].

    Neither an `Exception` nor a `CancelledError`, so that ordinary handlers let it pass: the workflow is not
    over, it goes on from its journal elsewhere or later. Do not catch it.
    """

"""Durable asyncio workflows that talk while they run, on nothing but PostgreSQL.

Define workflows with `@workflow` and `@step`; run them with `Runtime`; talk to them through `Topic`, `Event`
and `Stream`, from inside, or from anywhere with a `Client`.
"""

from holdfast._api.client import Client
from holdfast._api.runtime import Runtime
from holdfast._primitives.each import Each, Outcome, each
from holdfast._primitives.events import Event, get_event, set_event, watch_event
from holdfast._primitives.generations import continue_as
from holdfast._primitives.handles import Handle
from holdfast._primitives.messages import Topic, recv, send
from holdfast._primitives.reading import Items, Reader
from holdfast._primitives.requests import Request
from holdfast._primitives.select import first, first_of
from holdfast._primitives.steps import Step, step
from holdfast._primitives.streams import Stream, close_stream, read_stream, trim_stream, write_stream
from holdfast._primitives.timeouts import timeout
from holdfast._primitives.timers import now, random, sleep, sleep_until, uuid
from holdfast._primitives.transactions import Transaction, transaction
from holdfast._primitives.versions import patched
from holdfast._primitives.watching import Watch
from holdfast._primitives.workflows import Call, Current, Workflow, WorkflowRef, current, start, workflow
from holdfast._run.operation import Wait
from holdfast.config import Settings
from holdfast.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    HoldfastError,
    InvalidName,
    NondeterminismError,
    NotInWorkflow,
    NotRunning,
    PayloadCodecError,
    PayloadDecodeError,
    PayloadError,
    PayloadNotSerializable,
    PayloadTooLarge,
    RecordRejected,
    RegistrationError,
    RemoteError,
    RequestRejected,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    StepFailed,
    StreamClosed,
    StreamTrimmed,
    TokenRejected,
    WaitTimeout,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowError,
    WorkflowFailed,
    WorkflowFinished,
    WorkflowNotFound,
    WorkflowQuarantined,
    WorkflowStopped,
)
from holdfast.types import (
    Item,
    MessageInfo,
    Page,
    PayloadContext,
    Status,
    StepInfo,
    StreamInfo,
    WorkflowStatus,
)

__all__ = [
    "Call",
    "Client",
    "ConfigurationError",
    "Current",
    "DatabaseUnavailable",
    "Each",
    "Event",
    "Handle",
    "HoldfastError",
    "InvalidName",
    "Item",
    "Items",
    "MessageInfo",
    "NondeterminismError",
    "NotInWorkflow",
    "NotRunning",
    "Outcome",
    "Page",
    "PayloadCodecError",
    "PayloadContext",
    "PayloadDecodeError",
    "PayloadError",
    "PayloadNotSerializable",
    "PayloadTooLarge",
    "Reader",
    "RecordRejected",
    "RegistrationError",
    "RemoteError",
    "Request",
    "RequestRejected",
    "Runtime",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "Settings",
    "Status",
    "Step",
    "StepFailed",
    "StepInfo",
    "Stream",
    "StreamClosed",
    "StreamInfo",
    "StreamTrimmed",
    "TokenRejected",
    "Topic",
    "Transaction",
    "Wait",
    "WaitTimeout",
    "Watch",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowConflict",
    "WorkflowError",
    "WorkflowFailed",
    "WorkflowFinished",
    "WorkflowNotFound",
    "WorkflowQuarantined",
    "WorkflowRef",
    "WorkflowStatus",
    "WorkflowStopped",
    "close_stream",
    "continue_as",
    "current",
    "each",
    "first",
    "first_of",
    "get_event",
    "now",
    "patched",
    "random",
    "read_stream",
    "recv",
    "send",
    "set_event",
    "sleep",
    "sleep_until",
    "start",
    "step",
    "timeout",
    "transaction",
    "trim_stream",
    "uuid",
    "watch_event",
    "workflow",
    "write_stream",
]

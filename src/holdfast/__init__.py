"""Durable asyncio workflows that talk while they run, on nothing but PostgreSQL.

Define workflows with `@workflow` and `@step`; run them with `Runtime`; talk to them through `Topic`, `Event`
and `Stream`, from inside, or from anywhere with a `Client`.
"""

from holdfast._api.client import Client
from holdfast._api.runtime import Runtime
from holdfast._primitives.events import Event, get_event, set_event, watch_event
from holdfast._primitives.handles import Handle
from holdfast._primitives.messages import Topic, recv, send
from holdfast._primitives.select import first, first_of
from holdfast._primitives.steps import Step, step
from holdfast._primitives.streams import Reader, Stream, close_stream, read_stream, write_stream
from holdfast._primitives.timeouts import timeout
from holdfast._primitives.timers import now, random, sleep, sleep_until, uuid
from holdfast._primitives.transactions import Transaction, transaction
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
    PayloadDecodeError,
    PayloadError,
    PayloadNotSerializable,
    PayloadTooLarge,
    RecordRejected,
    RegistrationError,
    RemoteError,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    StepFailed,
    StreamClosed,
    StreamTrimmed,
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
from holdfast.types import Item, PayloadContext, Status, StepInfo, WorkflowStatus

__all__ = [
    "Call",
    "Client",
    "ConfigurationError",
    "Current",
    "DatabaseUnavailable",
    "Event",
    "Handle",
    "HoldfastError",
    "InvalidName",
    "Item",
    "NondeterminismError",
    "NotInWorkflow",
    "NotRunning",
    "PayloadContext",
    "PayloadDecodeError",
    "PayloadError",
    "PayloadNotSerializable",
    "PayloadTooLarge",
    "Reader",
    "RecordRejected",
    "RegistrationError",
    "RemoteError",
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
    "StreamTrimmed",
    "Topic",
    "Transaction",
    "Wait",
    "WaitTimeout",
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
    "current",
    "first",
    "first_of",
    "get_event",
    "now",
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
    "uuid",
    "watch_event",
    "workflow",
    "write_stream",
]

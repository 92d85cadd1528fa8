"""What the command exits with, and which error means what."""

import asyncio
from enum import IntEnum

from holdfast.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    HoldfastError,
    InvalidName,
    SchemaError,
    WaitTimeout,
    WorkflowConflict,
    WorkflowNotFound,
)


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    FAILED = 1
    """The workflow failed, was cancelled, or has ended without what was asked of it."""
    USAGE = 2
    NOT_FOUND = 3
    TIMEOUT = 4
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


class UsageError(ConfigurationError):
    """The command cannot be meant like this."""


def alone(error: BaseException) -> BaseException:
    """The error that a task group has raised, if it is only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def exit_code(error: BaseException) -> Exit | None:
    """What an error exits with; None if it is not an answer but a bug."""
    match error:
        case WorkflowNotFound():
            return Exit.NOT_FOUND
        case WaitTimeout() | DatabaseUnavailable():
            return Exit.TIMEOUT
        case WorkflowConflict() | ConfigurationError() | InvalidName() | SchemaError():
            return Exit.USAGE
        case HoldfastError():
            return Exit.FAILED
        case KeyboardInterrupt() | asyncio.CancelledError():
            return Exit.INTERRUPTED
    return None

"""The border to the driver: connections, deadlines, and the driver's errors in the library's own words.

Nothing here retries or waits for better times: the pool, the writer and the listener decide what an error
means to them. The errors below stay inside the library, and none tells a DSN, a password or a payload [K4].
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg
import asyncpg.transaction

from holdfast.errors import ConfigurationError, DatabaseUnavailable, HoldfastError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = [
    "Connection",
    "ConnectionLost",
    "DataRejected",
    "Retryable",
    "StoreError",
    "UniqueViolation",
    "connect",
    "deadline",
    "translate",
    "translate_trouble",
    "unavailable",
]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Transaction: TypeAlias = asyncpg.transaction.Transaction

# A black hole is noticed by deadlines; these free what a dead peer holds when nobody asks it anything.
_KEEPALIVE: Final = {"idle": 5, "interval": 2, "count": 3}
_USER_TIMEOUT_MS: Final = 10_000

_NUDGE: Final = 0.1
"""Seconds after the end of the connection until the task is cancelled that did not notice."""

_SESSION: Final = {
    "tcp_keepalives_idle": str(_KEEPALIVE["idle"]),
    "tcp_keepalives_interval": str(_KEEPALIVE["interval"]),
    "tcp_keepalives_count": str(_KEEPALIVE["count"]),
    "tcp_user_timeout": str(_USER_TIMEOUT_MS),
    # The fence reads what the lock it waited for has committed: only true in READ COMMITTED.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    # What a database or a role was given as defaults is meant for people, and would end our sessions.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
}

_ARRAYS: Final = [
    {
        "oid": oid,
        "ns": "pg_catalog",
        "name": f"_{name}",
        "kind": b"b",
        "elemtype": element,
        "elemdelim": b",",
        "elemtype_name": name,
        "range_subtype": None,
        "attrtypoids": None,
        "basetype": None,
    }
    for name, element, oid in (
        ("bool", 16, 1000),
        ("bytea", 17, 1001),
        ("int8", 20, 1016),
        ("int2", 21, 1005),
        ("int4", 23, 1007),
        ("float8", 701, 1022),
        ("uuid", 2950, 2951),
    )
]
"""Arrays of built-in types, the same in every database, as the driver would read them from the catalogue."""

_POOLER: Final = (
    "the connection pooler in front of the database refuses session settings: list them in its "
    "ignore_startup_parameters (" + ", ".join(_SESSION) + "), or connect to PostgreSQL itself"
)


class StoreError(Exception):
    """What the driver or the server said, in the library's words. `sqlstate` is None if no server spoke."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ConnectionLost(StoreError):
    """The connection is of no use any more; whether the last statement happened is unknown."""


class Retryable(StoreError):
    """The server refused for a reason that passes: nothing happened, the same may be sent again."""


class DataRejected(StoreError):
    """The fault lies in the data that was sent: sending it again cannot help."""

    def __init__(self, message: str, sqlstate: str | None = None, constraint: str | None = None) -> None:
        super().__init__(message, sqlstate)
        self.constraint = constraint


class UniqueViolation(DataRejected):
    """A row with this identity exists already."""


async def connect(dsn: str, *, role: str, timeout: float = 10) -> Connection:
    """Open a connection that shows up as `holdfast <role>` in `pg_stat_activity`.

    `timeout` is in seconds and covers everything up to the end of the log-in.

    Raises:
        ConnectionLost: if nobody answers there, or not in time, or not yet.
        Retryable: if the server has no connection to spare.
        ConfigurationError: if the DSN, the log-in or the database named in it is wrong, or the server's
            certificate is.
    """
    with translate():
        try:
            connection = await _open(dsn, role, timeout)
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            name = type(error).__name__
            raise ConfigurationError(f"the database refuses this log-in ({name}): check the DSN") from None
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(_distrusted(error)) from None
        except (asyncpg.InterfaceError, ValueError):
            # The driver quotes parts of the DSN, the password among them.
            raise ConfigurationError("the DSN of the database cannot be understood") from None
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" in str(error):
                raise ConfigurationError(_POOLER) from None
            raise
    _keep_alive(connection)
    _acquaint(connection)
    return connection


async def _open(dsn: str, role: str, timeout: float) -> Connection:
    settings = {**_SESSION, "application_name": f"holdfast {role}"}
    # No lifetime: the library's statements are few and always the same.
    return await asyncpg.connect(
        dsn, timeout=timeout, server_settings=settings, max_cached_statement_lifetime=0
    )


def _acquaint(connection: Connection) -> None:
    """Tell the driver what arrays are: else it asks on each new connection, at the cost of many commits."""
    with suppress(AttributeError):  # it has no public way to it; one that has no such way either asks
        connection._protocol.get_settings().register_data_types(_ARRAYS)  # type: ignore[attr-defined]


def _keep_alive(connection: Connection) -> None:
    """Ask the kernel to notice a peer that has gone; asyncpg leaves its sockets without any keepalive."""
    # asyncio and uvloop both hand out the socket here, and the driver has no public way to it.
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE": _KEEPALIVE["idle"],
        "TCP_KEEPINTVL": _KEEPALIVE["interval"],
        "TCP_KEEPCNT": _KEEPALIVE["count"],
        "TCP_USER_TIMEOUT": _USER_TIMEOUT_MS,
    }
    for name, value in options.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@asynccontextmanager
async def deadline(
    connection: Connection,
    seconds: float,
    *,
    border: Callable[[], AbstractContextManager[None]] | None = None,
) -> AsyncIterator[None]:
    """Give everything in the block `seconds` together, then kill the connection; translates like `translate`.

    The timer ends the connection rather than the task: in a black hole the driver's own clean-up (a ROLLBACK,
    the cancelling of a statement) waits for ever as well, and only a dead connection lets go of it.

    Raises:
        ConnectionLost: if the time ran out, or the connection was lost otherwise.
    """
    limit = _Limit(connection, seconds)
    try:
        with (border or translate)():
            yield
    except Exception as error:
        if limit.cancelled_by_others():
            # The driver's clean-up after a cancellation failed and put its error in the cancellation's place.
            raise asyncio.CancelledError from error
        if limit.expired:
            raise limit.error() from error
        raise
    except asyncio.CancelledError as error:
        if limit.nudged and not limit.cancelled_by_others():
            raise limit.error() from error
        raise
    finally:
        limit.lift()


class _Limit:
    """The timer of one `deadline`."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.expired = self.nudged = False
        self._connection = connection
        self._seconds = seconds
        self._task = asyncio.current_task()
        self._cancels = 0 if self._task is None else self._task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(max(seconds, 0.0), self._expire)

    def cancelled_by_others(self) -> bool:
        """Whether somebody has asked the task to end since the block began."""
        return self._task is not None and self._task.cancelling() > self._cancels + self.nudged

    def error(self) -> ConnectionLost:
        return ConnectionLost(f"the database did not answer within {self._seconds:g} s")

    def lift(self) -> None:
        self._timer.cancel()
        if self.nudged and self._task is not None:
            self._task.uncancel()

    def _expire(self) -> None:
        self.expired = True
        self._connection.terminate()
        self._timer = self._loop.call_later(_NUDGE, self._nudge)

    def _nudge(self) -> None:
        # asyncpg before 0.32 waits for ever for a cancelled statement on a connection that is terminated.
        if self._task is not None:
            self.nudged = True
            self._task.cancel()


@contextmanager
def translate() -> Iterator[None]:
    """Raise errors of the driver and the socket as the classes of this room; all others pass as they are."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        translated = _translated(error)
        if translated is None:
            raise
        raise translated from (None if _tells_secrets(error, translated) else error)


@contextmanager
def translate_trouble(connection: Connection) -> Iterator[None]:
    """Like `translate`, for statements that are not ours: only what running them again heals (a lost
    connection, a deadlock) is put into our words; everything else is for their author to see.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        if connection.is_closed():
            raise ConnectionLost("the connection was lost inside a transaction") from error
        if isinstance(error, asyncpg.TransactionRollbackError):
            raise Retryable(
                f"the server rolled a transaction back ({error.sqlstate})", error.sqlstate
            ) from error
        raise


def unavailable(error: Exception) -> DatabaseUnavailable:
    """What a caller is told whose patience with the database is over."""
    told = DatabaseUnavailable("the database did not answer for as long as Settings.database_patience allows")
    told.__cause__ = error
    return told


def _tells_secrets(error: Exception, translated: StoreError) -> bool:
    """Whether the text would show a payload (DETAIL, the driver's word on an argument) or the address."""
    return isinstance(translated, DataRejected) or isinstance(error, OSError)


DriverError: TypeAlias = (
    asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError
)
_LOST: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "25006", "40003"})
_RETRYABLE: Final = frozenset({"40000", "40001", "40P01", "55006", "55P03", "57000", "57014"})
_REJECTED: Final = frozenset({"21", "22", "23", "44", "54"})


def _translated(error: DriverError) -> StoreError | None:
    if isinstance(error, asyncpg.PostgresError):
        return _translated_server_error(error)
    if isinstance(error, asyncpg.OutdatedSchemaCacheError):
        return Retryable("the driver's picture of the schema was out of date")
    if isinstance(error, asyncpg.InternalClientError):
        return ConnectionLost("the server's reply made no sense to the driver")
    if isinstance(error, asyncpg.InterfaceError):
        return ConnectionLost("the connection is closed") if "closed" in str(error) else None
    if isinstance(error, HoldfastError):  # WaitTimeout and DatabaseUnavailable are OSErrors too
        return None
    return ConnectionLost(_describe(error))


_ANOTHER_HOST: Final = frozenset({62, 64})
"""Codes of OpenSSL for a certificate that is made out to another name or address; its text says to whom."""


def _distrusted(error: ssl.SSLCertVerificationError) -> str:
    code: int | None = getattr(error, "verify_code", None)
    reason = getattr(error, "verify_message", "") if code not in _ANOTHER_HOST else "made out to another host"
    return (
        f"the certificate of the database cannot be verified ({reason or error.reason}): check sslmode and "
        "sslrootcert"
    )


def _describe(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the database did not answer in time"
    if isinstance(error, ssl.SSLError):
        # Its number is none of the system's errors.
        return f"the encryption of the connection to the database failed ({error.reason})"
    # Not its text: that holds the address.
    reason = f": {os.strerror(error.errno)}" if error.errno and error.errno > 0 else ""
    return f"the connection to the database failed ({type(error).__name__}{reason})"


def _translated_server_error(error: asyncpg.PostgresError) -> StoreError | None:
    state: str = error.sqlstate or ""
    if state in _LOST or state.startswith("08"):
        return ConnectionLost(f"the server closed the connection ({state})", state)
    stale_plan = isinstance(error, asyncpg.InvalidCachedStatementError)
    if stale_plan or state in _RETRYABLE or state.startswith("53"):
        return Retryable(f"the server refused for now ({state})", state)
    if state[:2] in _REJECTED:
        kind = UniqueViolation if state == "23505" else DataRejected
        name: str | None = error.constraint_name
        return kind(f"the server refused the data ({state}{', ' + name if name else ''})", state, name)
    return None

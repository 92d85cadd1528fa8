"""Starts and sends in a caller's own transaction, which are done when it commits: what `conn=` means.

Nothing here begins, ends or retries anything: the transaction, its connection and its errors are the
caller's. What cannot be started or sent is an answer and not an error of the database, so that the
transaction stays usable.
"""

from inspect import iscoroutinefunction
from typing import Any, cast

import asyncpg
import asyncpg.pool

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection
from holdfast.errors import ConfigurationError, WorkflowConflict

_ASKED = (
    "conn= takes an asyncpg connection, of a pool or not, or an AsyncSession or AsyncConnection of "
    "SQLAlchemy over asyncpg, not {}; with another driver, call the schema's functions start and send"
)
_NOT_BEGUN = (
    "SQLAlchemy begins a transaction with its first statement, and this connection has had none: pass the "
    "AsyncSession or AsyncConnection itself as conn="
)


async def driver_connection(sql: Statements, conn: object) -> Connection:
    """The driver's connection in what a caller gives as `conn=`; in its transaction, where SQLAlchemy has it.

    Of SQLAlchemy, which is not imported, anything that leads to the driver's connection will do.

    Raises:
        TypeError: if there is no asyncpg connection in it.
        ConfigurationError: if SQLAlchemy has yet to begin the transaction.
    """
    if isinstance(conn, asyncpg.pool.PoolConnectionProxy):
        # Its own is another object for each time that the connection is lent.
        return cast("Connection", getattr(conn, "_con", None) or conn)
    if isinstance(conn, asyncpg.Connection):
        return conn
    given: Any = conn
    if iscoroutinefunction(getattr(type(given), "connection", None)):  # an AsyncSession
        given = await given.connection()
    if hasattr(given, "get_raw_connection"):  # an AsyncConnection
        return await _connection_of_sqlalchemy(sql, given)
    found = getattr(given, "driver_connection", None)
    if not isinstance(found, asyncpg.Connection):
        raise TypeError(_ASKED.format(type(conn).__qualname__))
    if not (found.is_in_transaction() or getattr(given, "autocommit", False)):
        raise ConfigurationError(_NOT_BEGUN)
    return found


async def _connection_of_sqlalchemy(sql: Statements, given: Any) -> Connection:  # noqa: ANN401
    found = (await given.get_raw_connection()).driver_connection
    if not isinstance(found, asyncpg.Connection):
        raise TypeError(_ASKED.format(f"a connection of {type(found).__module__.partition('.')[0]}"))
    if not found.is_in_transaction():
        # What is done past SQLAlchemy would otherwise commit by itself.
        await given.exec_driver_sql(sql["intents.begin"])
    return found


async def identify(connection: Connection, sql: Statements) -> str:
    """Which database it leads to: equal for two connections only if they lead to the same."""
    return str(await connection.fetchval(sql["intents.identify"]))


async def start(
    connection: Connection,
    sql: Statements,
    workflow_id: str,
    name: str,
    input: bytes,
    timeout: float | None,
    attributes: str | None,
    app_version: str | None,
    *,
    strict: bool,
) -> tuple[int, str | None]:
    """Has a workflow begin when the caller commits. Gives a code as a batch does, of what is seen now (0, 6
    the id belongs to another workflow, 11 it exists), and the name that the id has.

    `strict`: the id must be new when the caller commits, too.

    Raises:
        WorkflowConflict: if the statement is its own transaction, and the id was taken while it ran.
    """
    try:
        row = await connection.fetchrow(
            sql["intents.start"], workflow_id, name, input, timeout, attributes, app_version, strict
        )
    except asyncpg.UniqueViolationError as error:
        raise WorkflowConflict(workflow_id, str(error)) from error
    assert row is not None, "the function gives one row"
    return row[0], row[1]


async def send(
    connection: Connection, sql: Statements, to: str, topic: str, payload: bytes, key: str | None
) -> int:
    """Has a message sent when the caller commits. Gives a code as a batch does: 0, 4 there is no such
    workflow, 5 it has ended.
    """
    code: int = await connection.fetchval(sql["intents.send"], to, topic, payload, key)
    return code

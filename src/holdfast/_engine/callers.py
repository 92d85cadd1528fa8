"""The connections that callers bring for `conn=`: whether they lead to the database of this engine.

Each is asked once. A start in a database where no runtime of this schema listens would be lost in silence.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar
from weakref import WeakSet

from holdfast._sql.statements import Statements
from holdfast._store import intents
from holdfast._store.connection import Connection
from holdfast.errors import ConfigurationError

T = TypeVar("T")


class Ask(Protocol):
    """How an engine asks its own database something."""

    async def __call__(self, act: Callable[[Connection], Awaitable[T]]) -> T: ...


class Callers:
    """The callers' connections of one engine."""

    def __init__(self, sql: Statements, ask: Ask) -> None:
        self._sql = sql
        self._ask = ask
        self._ours: str | None = None
        self._known: WeakSet[Connection] = WeakSet()

    async def admit(self, conn: object) -> Connection:
        """The driver's connection in what was given as `conn=`.

        Raises:
            TypeError: if there is none in it.
            ConfigurationError: if it leads to another database.
        """
        connection = await intents.driver_connection(self._sql, conn)
        if connection not in self._known:
            await self._check(connection)
            self._known.add(connection)
        return connection

    async def _check(self, connection: Connection) -> None:
        if self._ours is None:
            self._ours = await self._ask(lambda ours: intents.identify(ours, self._sql))
        if await intents.identify(connection, self._sql) != self._ours:
            raise ConfigurationError(
                "the connection given as conn= leads to another database than this runtime or client"
            )

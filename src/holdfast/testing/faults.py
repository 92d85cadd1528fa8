"""A proxy in front of PostgreSQL that breaks connections in the ways networks do.

It knows as much of the wire protocol as it takes to lose the request or the reply of one chosen statement, or
all notifications. One proxy for each role that is to fail on its own: give its `dsn` to a runtime, or as
`listen_dsn`. Not for TLS: what comes through the proxy is plain.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

__all__ = ["Direction", "Fault", "Proxy"]

_TLS: Final = (80877103, 80877104)
_CHUNK: Final = 64 * 1024


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


BOTH: Final = (Direction.TO_SERVER, Direction.TO_CLIENT)


@dataclass(kw_only=True, eq=False)
class Fault:
    """Something that is to happen `times` times; `happened` is set when it has happened the first time."""

    times: int = 1
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> bool:
        """Whether it is to happen now; counts."""
        if self.times <= 0:
            return False
        self.times -= 1
        self.happened.set()
        return True


@dataclass(kw_only=True, eq=False)
class _Statement(Fault):
    text: str
    reply: bool


@dataclass(kw_only=True, eq=False)
class _Cut(Fault):
    direction: Direction
    after: int


class Proxy:
    """Passes connections on to the server of `target_dsn` until it is told to do worse.

    Faults hold for all connections, those to come included, until `heal`. Use it as a context manager.

    Example:
        async with Proxy(dsn) as proxy, hf.Client(proxy.dsn) as client:
            lost = proxy.lose_reply("commit_batch")
            await client.send("order-1", "hello")  # is sent again, and arrives once
            assert lost.happened.is_set()
    """

    def __init__(self, target_dsn: str) -> None:
        self._target = target_dsn
        self._port = 0
        self._links: set[_Link] = set()
        self._stack = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._statements: list[_Statement] = []
        self._cuts: list[_Cut] = []
        self.swallowed: frozenset[Direction] = frozenset()
        self.latency: float = 0.0
        self.deaf: bool = False
        self.refusing: bool = False
        self.opened: int = 0
        """Connections accepted since the start."""
        self.dropped_notifications = 0

    @property
    def dsn(self) -> str:
        """The target's DSN with this proxy in the place of the server."""
        parts = urlsplit(self._target)
        query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("host", "port", "sslmode")]
        query.append(("sslmode", "disable"))
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{self._port}", query=urlencode(query)))

    @property
    def links(self) -> int:
        """Connections that are open now, black holes included."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        await self._stack.enter_async_context(self._group)
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._stack.callback(self.reset)
        self._stack.callback(server.close)
        self._port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not told of the error: the task group would wrap it.
        await self._stack.__aexit__(None, None, None)

    def swallow(self, *directions: Direction) -> None:
        """Make black holes: bytes vanish, nobody is told. A connection that lost some is one for ever.

        Both directions, unless some are named.
        """
        self.swallowed = frozenset(directions or BOTH)

    def strand(self, *directions: Direction) -> None:
        """Make black holes of the connections that are open now, for ever; new ones pass."""
        for link in self._links:
            link.holes.update(directions or BOTH)

    def delay(self, seconds: float) -> None:
        """Deliver everything this much later, each way."""
        self.latency = seconds

    def deafen(self) -> None:
        """Drop all notifications; everything else passes."""
        self.deaf = True

    def refuse(self) -> None:
        """Reset every new connection."""
        self.refusing = True

    def reset(self) -> None:
        """Reset (RST) all connections that are open, now, on both sides."""
        for link in tuple(self._links):
            link.reset()

    def lose_request(self, text: str, *, times: int = 1) -> Fault:
        """Reset the connection on which a statement holding `text` is sent; the server never reads it."""
        return self._add(_Statement(text=text, reply=False, times=times))

    def lose_reply(self, text: str, *, times: int = 1) -> Fault:
        """Reset the connection once the server has executed a statement holding `text`; the reply is lost."""
        return self._add(_Statement(text=text, reply=True, times=times))

    def cut(self, direction: Direction, after: int, *, times: int = 1) -> Fault:
        """Reset connections opened from now on behind byte number `after` of a direction."""
        fault = _Cut(direction=direction, after=after, times=times)
        self._cuts.append(fault)
        return fault

    def heal(self) -> None:
        """Pass everything again. Connections that lost bytes stay black holes until they are reset."""
        self.swallowed = frozenset()
        self.latency = 0.0
        self.deaf = self.refusing = False
        self._statements.clear()
        self._cuts.clear()

    def _add(self, fault: _Statement) -> Fault:
        self._statements.append(fault)
        return fault

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        if self.refusing:
            _reset(writer)
            return
        self._group.create_task(self._serve(reader, writer), name=f"proxied connection {self.opened}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run(self._target)
        except OSError:
            pass  # the server is not there: the client sees a reset
        finally:
            self._links.discard(link)
            link.abort()

    def _fault_of(self, text: str) -> _Statement | None:
        return next((fault for fault in self._statements if fault.text in text and fault.take()), None)

    def _cut_of_new_link(self) -> _Cut | None:
        return next((fault for fault in self._cuts if fault.times > 0), None)


class _Link:
    """One connection through the proxy: two sockets, and what is done to the bytes between them."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._task = asyncio.current_task()
        self._readers = {Direction.TO_SERVER: reader}
        self._writers = {Direction.TO_CLIENT: writer}
        self._messages = {d: _Messages(started=d is Direction.TO_CLIENT) for d in BOTH}
        self._due = dict.fromkeys(BOTH, 0.0)
        self._passed = dict.fromkeys(BOTH, 0)
        self.holes: set[Direction] = set()
        self._prepared: dict[bytes, str] = {}
        self._losing_reply = False
        self._cut = proxy._cut_of_new_link()

    async def run(self, target: str) -> None:
        reader, writer = await _connect(target)
        self._readers[Direction.TO_CLIENT] = reader
        self._writers[Direction.TO_SERVER] = writer
        async with asyncio.TaskGroup() as group:
            for direction in BOTH:
                group.create_task(self._pump(direction), name=f"proxy {direction.value}")

    def abort(self) -> None:
        for writer in self._writers.values():
            _reset(writer)

    def reset(self) -> None:
        self.holes.update(BOTH)
        self.abort()
        if self._task is not None:
            self._task.cancel()

    async def _pump(self, direction: Direction) -> None:
        reader, writer = self._readers[direction], self._writers[direction]
        try:
            while data := await reader.read(_CHUNK):
                for message in self._messages[direction].feed(data):
                    self._pass(direction, message)
                await writer.drain()
        except ConnectionError:
            pass  # passed on like an orderly end
        if not self.holes and not self._proxy.swallowed:
            self._later(direction, writer.close)

    def _pass(self, direction: Direction, message: bytes) -> None:
        if direction in self._proxy.swallowed:
            self.holes.add(direction)
        if direction in self.holes:
            return
        passes = self._request(message) if direction is Direction.TO_SERVER else self._reply(message)
        if passes:
            self._send(direction, message)

    def _request(self, message: bytes) -> bool:
        """Whether the server is to get this message."""
        if self._messages[Direction.TO_SERVER].is_tls_request(message):
            self._write(Direction.TO_CLIENT, b"N")
            return False
        text = self._statement_in(message)
        fault = None if text is None else self._proxy._fault_of(text)
        if fault is None:
            return True
        if fault.reply:
            self._losing_reply = True
        else:
            self.reset()
        return fault.reply

    def _reply(self, message: bytes) -> bool:
        """Whether the client is to get this message."""
        kind = message[:1]
        if self._losing_reply:
            if kind == b"Z":  # ReadyForQuery: the server is done, and has committed
                self.reset()
            return False
        if kind == b"A" and self._proxy.deaf:
            self._proxy.dropped_notifications += 1
            return False
        return True

    def _statement_in(self, message: bytes) -> str | None:
        """The SQL that this message has the server execute."""
        kind, body = message[:1], message[5:]
        if kind == b"Q":
            return body.rstrip(b"\0").decode()
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
        if kind == b"B":
            return self._prepared.get(body.split(b"\0", 2)[1])
        return None

    def _send(self, direction: Direction, message: bytes) -> None:
        cut = self._cut
        if cut is not None and cut.direction is direction:
            message = message[: max(cut.after - self._passed[direction], 0)]
        self._passed[direction] += len(message)
        self._write(direction, message)
        if cut is not None and cut.direction is direction and self._passed[direction] >= cut.after:
            self.holes.update(BOTH)
            cut.take()
            # uvloop writes at the end of its turn.
            asyncio.get_running_loop().call_later(0.005, self.reset)

    def _write(self, direction: Direction, data: bytes) -> None:
        writer = self._writers[direction]
        self._later(direction, lambda: None if writer.is_closing() else writer.write(data))

    def _later(self, direction: Direction, action: Callable[[], object]) -> None:
        """Do it when its turn has come: after the latency, and after all that was sent before it."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = max(now + self._proxy.latency, self._due[direction])
        if due <= now:
            action()
        else:
            self._due[direction] = due + 1e-6
            loop.call_at(due, action)


class _Messages:
    """Cuts one direction of a connection into the protocol's messages."""

    def __init__(self, *, started: bool) -> None:
        self._buffer = bytearray()
        self._started = started

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now."""
        self._buffer += data
        while message := self._next():
            if not self._started and not self.is_tls_request(message):
                self._started = True
            yield message

    def is_tls_request(self, message: bytes) -> bool:
        """Whether the client asks for encryption, which it does before anything else."""
        return (
            len(message) == 8 and message[:4] == b"\0\0\0\x08" and struct.unpack("!i", message[4:])[0] in _TLS
        )

    def _next(self) -> bytes:
        """The first message, taken out of the buffer; empty if it has not come whole."""
        head = 1 if self._started else 0  # the very first has no type
        if len(self._buffer) < head + 4:
            return b""
        length = head + int.from_bytes(self._buffer[head : head + 4])
        if len(self._buffer) < length:
            return b""
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message


async def _connect(dsn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    host = query.get("host") or unquote(parts.hostname or "") or "127.0.0.1"
    port = int(query.get("port") or parts.port or 5432)
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a good-bye: the peer gets RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

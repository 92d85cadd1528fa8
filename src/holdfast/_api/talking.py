"""Talking to workflows from outside: messages, requests, tokens, events, streams."""

from datetime import timedelta
from typing import Any, TypeVar, overload

from holdfast import _keys
from holdfast._api.control import Control
from holdfast._api.tokens import Tokens
from holdfast._primitives import events, messages, requests
from holdfast._primitives.channels import name_and_type
from holdfast._primitives.events import Event
from holdfast._primitives.handles import Handle
from holdfast._primitives.messages import Topic
from holdfast._primitives.reading import Reader, open_reader, span_of
from holdfast._primitives.streams import Stream
from holdfast._primitives.watching import Watch
from holdfast.config import seconds_of
from holdfast.types import MISSING

T = TypeVar("T")
A = TypeVar("A")
D = TypeVar("D")


class Talking(Control):
    """The talking half of a client; everything works on any workflow, wherever it runs."""

    _tokens: Tokens

    async def send(
        self,
        workflow_id: str,
        message: object,
        topic: str | Topic[Any, Any] | None = None,
        *,
        key: str | None = None,
        conn: object | None = None,
    ) -> None:
        """Sends a message: committed when this returns, and receivable in whatever process the workflow runs
        [M1].

        At least once by nature, if this process dies in between and sends again; with `key` exactly once per
        destination [M3]. A lost connection in between never doubles it.

        `conn`: the caller's own connection, as for `start`: the message is sent when the caller's transaction
        commits, and not at all if that rolls back. Messages of one transaction keep their order [M5]. If the
        workflow is deleted before that, the message goes with it.

        Raises:
            WorkflowNotFound: if there is no such workflow [M2].
            WorkflowFinished: if it has ended (SUCCESS or ERROR) [M2].
            PayloadNotSerializable, PayloadTooLarge, InvalidName: before anything is written.
            TypeError, ConfigurationError: for a `conn` that `start` would not take.
        """
        await messages.send_from_outside(self.engine, workflow_id, message, topic, key, conn)

    @overload
    async def ask(
        self,
        workflow_id: str,
        topic: Topic[T, A],
        value: T,
        *,
        timeout: float | timedelta | None = None,
    ) -> A: ...
    @overload
    async def ask(
        self,
        workflow_id: str,
        topic: str,
        value: object,
        *,
        timeout: float | timedelta | None = None,
        type: type[T],
    ) -> T: ...
    @overload
    async def ask(
        self,
        workflow_id: str,
        topic: str,
        value: object,
        *,
        timeout: float | timedelta | None = None,
        type: object = ...,
    ) -> Any: ...
    async def ask(
        self,
        workflow_id: str,
        topic: str | Topic[Any, Any],
        value: object,
        *,
        timeout: float | timedelta | None = None,
        type: object = Any,
    ) -> Any:
        """Sends a request, and waits for the workflow's reply, at most `timeout` seconds.

        The workflow takes it with `Topic.requests`; a plain `recv` takes it as any message, and then nobody
        answers. Whoever gives up waiting harms nobody: the request stays, and is answered in vain. Asking
        again is another request.

        Raises:
            WorkflowNotFound: if there is no such workflow.
            WorkflowFinished: if it has ended, or is no longer active and has not replied.
            WaitTimeout: if it did not reply in time.
            whatever the request was rejected with: `RequestRejected` if that was a text.
            PayloadDecodeError: if the reply does not fit the type, or the request did not fit its own.
            PayloadNotSerializable, PayloadTooLarge, InvalidName: before anything is written.

        Example:
            >>> async def price_of(client: Talking, item: str) -> float:
            ...     return await client.ask("clerk", Topic[str, float]("price"), item, timeout=5)
        """
        return await requests.ask_from_outside(self.engine, workflow_id, topic, value, timeout, type)

    def token(
        self, workflow: Handle[Any] | str, topic: str | Topic[Any, Any], *, ttl: float | timedelta
    ) -> str:
        """A secret with which anybody can send one message of a topic to a workflow, within `ttl` seconds:
        for the link in a mail, or the address that a webhook calls.

        Signed with the first of `Settings.hmac_keys`, safe in an URL, at most some 1,200 characters; no I/O.
        Neither the workflow nor the topic can be changed in it, but whoever holds it can read them. Its time
        counts from this process's clock, and is over by the database's.

        It is a token for the id. If the workflow is deleted and another started under that id within `ttl`,
        it sends one message to that one, used before or not: do not use an id again while tokens for it live.

        Raises:
            ConfigurationError: if there are no `Settings.hmac_keys`.
            InvalidName: if the id or the topic cannot be one.
            ValueError: if `ttl` is not more than 0.

        Example:
            >>> def link(client: Talking, order: str) -> str:
            ...     return f"https://shop.example/pay?token={client.token(order, 'payment', ttl=3600)}"
        """
        workflow_id = workflow.id if isinstance(workflow, Handle) else workflow
        return self._tokens.issue(workflow_id, name_and_type(topic, "topic", Any)[0], ttl)

    async def redeem(self, token: str, value: object) -> None:
        """Sends `value` as the one message that a token allows: exactly once, however many try at once.

        Redeem in answer to a POST: programs that look into mails follow links.

        Raises:
            TokenRejected: if the token is expired, forged, used, or its workflow does not exist or has ended;
            which of these, nobody is told.
            PayloadNotSerializable, PayloadTooLarge: before anything is written; the token can still be used.
            ConfigurationError: if there are no `Settings.hmac_keys`.
        """
        await self._tokens.redeem(self.engine, token, value)

    @overload
    async def get_event(
        self, workflow_id: str, key: Event[T], *, timeout: float | timedelta | None = None
    ) -> T: ...
    @overload
    async def get_event(
        self, workflow_id: str, key: Event[T], *, timeout: float | timedelta | None = None, default: D
    ) -> T | D: ...
    @overload
    async def get_event(
        self, workflow_id: str, key: str, *, timeout: float | timedelta | None = None, type: type[T]
    ) -> T: ...
    @overload
    async def get_event(
        self,
        workflow_id: str,
        key: str,
        *,
        timeout: float | timedelta | None = None,
        default: D,
        type: type[T],
    ) -> T | D: ...
    @overload
    async def get_event(
        self,
        workflow_id: str,
        key: str,
        *,
        timeout: float | timedelta | None = None,
        default: object = ...,
        type: object = ...,
    ) -> Any: ...
    async def get_event(
        self,
        workflow_id: str,
        key: str | Event[Any],
        *,
        timeout: float | timedelta | None = None,
        default: object = MISSING,
        type: object = Any,
    ) -> Any:
        """The latest value that a workflow has published under a key; waits until there is one, at most
        `timeout` seconds [E2]. The workflow of this id need not exist yet.

        Raises:
            WaitTimeout: if there was none in time and there is no `default`.
            WorkflowFinished: if the workflow is no longer active and has not set it, `default` or not.
            PayloadDecodeError: if the value does not fit the type.
        """
        name, kind = name_and_type(key, "event key", type)
        _keys.check_workflow_id(workflow_id)
        return await events.get_event_outside(
            self.engine, workflow_id, name, seconds_of(timeout), default, kind
        )

    @overload
    def watch_event(self, workflow_id: str, key: Event[T]) -> Watch[T]: ...
    @overload
    def watch_event(self, workflow_id: str, key: str, type: type[T]) -> Watch[T]: ...
    @overload
    def watch_event(self, workflow_id: str, key: str, type: object = ...) -> Watch[Any]: ...
    def watch_event(self, workflow_id: str, key: str | Event[Any], type: object = Any) -> Watch[Any]:
        """An event's value now, then every change in the order of revisions; a slow watcher skips to the
        latest. Ends when the workflow is no longer active, after the last value [E5]. A workflow that does
        not exist yet is waited for [E2].

        Raises:
            InvalidName: if the id or the key cannot be one.
        """
        return events.watch(self.engine, workflow_id, key, type)

    async def get_events(self, workflow_id: str, history: bool = False) -> dict[str, Any]:
        """Every event of a workflow: the latest values by key, or with `history` lists of `(revision,
        value)`.

        Raises:
            WorkflowNotFound: if there is no such workflow.
        """
        found = await events.all_events(self.engine, workflow_id, history=history)
        if not found:
            await self._check_exists(workflow_id)
        return found

    @overload
    def read_stream(
        self,
        workflow_id: str,
        key: Stream[T],
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
    ) -> Reader[T]: ...
    @overload
    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: type[T],
    ) -> Reader[T]: ...
    @overload
    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: object = ...,
    ) -> Reader[Any]: ...
    def read_stream(
        self,
        workflow_id: str,
        key: str | Stream[Any],
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: object = Any,
    ) -> Reader[Any]:
        """Reads a stream, live until it ends [S4, S5]. No I/O until iterated.

        From its beginning, or behind offset `after`, or with `last=k` from the k-th value before the end as
        it is when the reader first looks (0: only what is written from then on). With `follow=False` it
        gives what is there when it first looks, and stops [S6]. Readers of one stream in one process share
        what they fetch [S7].

        Raises:
            ValueError: if `after` or `last` is out of range, or both are given.
        Raises (when iterated):
            WorkflowNotFound: if there is no such workflow.
            StreamTrimmed: if the value behind `after` is no longer kept.
        """
        return open_reader(self.engine, workflow_id, key, span_of(after, last, follow), type)

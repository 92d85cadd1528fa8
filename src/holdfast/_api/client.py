"""Client: talks to workflows from anywhere. It runs none."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload
from uuid import uuid4

from holdfast import _keys
from holdfast._api.control import Control
from holdfast._api.tokens import Tokens
from holdfast._codec import ErrorRegistry, encode_attributes
from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._primitives import events, messages, requests
from holdfast._primitives.channels import name_and_type
from holdfast._primitives.events import Event
from holdfast._primitives.handles import Handle
from holdfast._primitives.messages import Topic
from holdfast._primitives.reading import Reader, open_reader, span_of
from holdfast._primitives.streams import Stream
from holdfast._primitives.watching import Watch
from holdfast._primitives.workflows import Call, Workflow, WorkflowRef
from holdfast._store import intents
from holdfast._store.commits import Answer, Code, Start
from holdfast.config import Settings, check_schema_name, seconds_of
from holdfast.errors import WorkflowConflict
from holdfast.types import MISSING

T = TypeVar("T")
A = TypeVar("A")
D = TypeVar("D")
R = TypeVar("R")
Existing = Literal["attach", "raise"]


class Client(Control):
    """Starts workflows, sends to them, awaits and reads what they say. Inert until entered.

    `dsn`: the argument, else HOLDFAST_DATABASE_URL, else DATABASE_URL, else the embedded PostgreSQL.
    `listen_dsn`: another way to the same database for the listening connection, past a pooler. `errors`:
    exception classes to rebuild. `migrate=False` checks the schema only.

    Raises (when entered):
        DatabaseUnavailable: if there was no database for `Settings.database_patience` seconds.
        SchemaError: if the schema is not this version's and may not be migrated.
        ConfigurationError: if there is no database to be found.

    Example:
        >>> async def pay(order: str) -> None:
        ...     async with Client() as client:
        ...         await client.send(order, {"amount": 100}, "payment")
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        schema: str = "holdfast",
        listen_dsn: str | None = None,
        migrate: bool = True,
        errors: Iterable[type[BaseException]] = (),
        settings: Settings | None = None,
    ) -> None:
        super().__init__(dsn)
        self._schema = check_schema_name(schema)
        self._listen_dsn = listen_dsn
        self._migrate = migrate
        self._errors = ErrorRegistry(errors)
        self._settings = settings or Settings()
        self._tokens = Tokens(self._schema, self._settings.hmac_keys)
        self._app_version: str | None = None

    def _build(self, dsn: str) -> Engine:
        return Engine(
            dsn,
            listen_dsn=self._listen_dsn,
            schema=self._schema,
            settings=self._settings,
            errors=self._errors,
            app_version=self._app_version,
            migrate=self._migrate,
        )

    async def _serve(self, started: asyncio.Event, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            engine = group.create_task(self.engine.run(started), name="holdfast engine")
            await stopping.wait()
            engine.cancel()

    # Starting

    async def start(
        self,
        call: Call[R],
        *,
        id: str | None = None,
        timeout: float | timedelta | None = None,
        attributes: Mapping[str, Any] | None = None,
        on_existing: Existing = "attach",
        conn: object | None = None,
    ) -> Handle[R]:
        """Starts a workflow; its row is committed when this returns [W1].

        `id` is the idempotency key: the same id and workflow again attaches to the one that exists.
        `timeout`: seconds that it may take, else what its definition says. `attributes`: a JSON object of at
        most 16 KiB, stored in the clear, that `list` searches. What a client starts is taken by some runtime
        that knows the name.

        `conn`: the caller's own connection to the same database: an asyncpg connection, or an AsyncSession or
        AsyncConnection of SQLAlchemy over asyncpg. Then the workflow begins when the caller's transaction
        commits, and not at all if that rolls back; without a transaction, at once. (Give SQLAlchemy's objects
        themselves: it begins a transaction with its first statement, of which its raw connection knows
        nothing.) What is started so is enqueued, and taken by some runtime, this one perhaps. Until the
        commit the handle's methods find no workflow. If another workflow takes the id while the transaction
        is open, its COMMIT fails.

        Raises:
            WorkflowConflict: if the id belongs to another workflow, or exists and `on_existing` is "raise".
            PayloadNotSerializable, PayloadTooLarge, InvalidName: before anything is written.
            TypeError: if `conn` is no such connection.
            ConfigurationError: if `conn` leads to another database.

        Example:
            >>> async def order(client: Client, connection: Any, checkout: Workflow[[int], str]) -> None:
            ...     async with connection.transaction():
            ...         await connection.execute("insert into orders (id) values (17)")
            ...         await client.start(checkout(17), id="order-17", conn=connection)
        """
        if not isinstance(call, Call):
            raise TypeError("start takes a call of a workflow, such as start(checkout(order))")
        if on_existing not in ("attach", "raise"):
            raise ValueError('on_existing is "attach" or "raise"')
        workflow_id = _keys.new_workflow_id() if id is None else _keys.check_workflow_id(id)
        seconds = seconds_of(timeout)
        searched = None if attributes is None else encode_attributes(attributes)
        if conn is None:
            answer = await self._commit_start(call, workflow_id, seconds, searched)
        else:
            strict = on_existing == "raise"
            answer = await self._intend_start(call, workflow_id, seconds, searched, conn, strict)
        if answer.code is Code.CONFLICT:
            raise WorkflowConflict(
                workflow_id, f"workflow {workflow_id!r} exists, and is a {answer.note!r}, not a {call.name!r}"
            )
        if answer.code is Code.ATTACHED and on_existing == "raise":
            raise WorkflowConflict(workflow_id, f"workflow {workflow_id!r} exists already")
        return Handle(self.engine, workflow_id, call.result_type)

    async def _commit_start(
        self, call: Call[Any], workflow_id: str, timeout: float | None, attributes: str | None
    ) -> Answer:
        record = self._start_record(call, workflow_id, timeout, attributes, here=False)
        point("outside_start.before_commit")
        (answer,) = await self.engine.writer.commit(record)
        point("outside_start.after_commit")
        return answer

    async def _intend_start(
        self,
        call: Call[Any],
        workflow_id: str,
        timeout: float | None,
        attributes: str | None,
        conn: object,
        strict: bool,
    ) -> Answer:
        self._check_known(call)
        record = self._start_record(call, workflow_id, timeout, attributes, here=False)
        code, note = await intents.start(
            await self.engine.callers.admit(conn),
            self.engine.sql,
            record.id,
            record.name,
            record.input,
            record.timeout,
            record.attributes,
            self._app_version,
            strict=strict,
        )
        return Answer(Code(code), note=note)

    def _check_known(self, call: Call[Any]) -> None:
        """Refuses a call that could not be started from here. A client refuses none."""

    def _start_record(
        self,
        call: Call[Any],
        workflow_id: str,
        timeout: float | None,
        attributes: str | None,
        *,
        here: bool,
    ) -> Start:
        engine = self.engine
        data = engine.codec.encode_call(
            call.args, call.kwargs, engine.context(workflow_id, "input", call.name)
        )
        if timeout is None and call.target is not None:
            timeout = call.target.timeout
        return Start(
            id=workflow_id,
            name=call.name,
            token=uuid4(),
            here=here,
            input=data,
            timeout=timeout,
            attributes=attributes,
        )

    async def run(
        self,
        call: Call[R],
        *,
        id: str | None = None,
        timeout: float | timedelta | None = None,
        attributes: Mapping[str, Any] | None = None,
        on_existing: Existing = "attach",
    ) -> R:
        """Starts a workflow and waits for its result: `start` and `Handle.result` in one, with the errors of
        both. `timeout` is the workflow's own: past it, it is cancelled [W10].
        """
        handle = await self.start(
            call, id=id, timeout=timeout, attributes=attributes, on_existing=on_existing
        )
        return await handle.result()

    @overload
    def handle(self, workflow: Workflow[Any, R] | WorkflowRef[Any, R], id: str, /) -> Handle[R]: ...
    @overload
    def handle(self, workflow: str, /) -> Handle[Any]: ...
    def handle(self, workflow: Any, id: str | None = None, /) -> Handle[Any]:
        """A handle of a workflow by its id, typed when the workflow is given first; no I/O."""
        if id is None and isinstance(workflow, Workflow | WorkflowRef):
            raise TypeError(f"handle takes an id too: handle({workflow.name}, id)")
        if id is None:
            return Handle(self.engine, workflow, Any)
        if isinstance(workflow, Workflow):
            return Handle(self.engine, id, workflow.definition.parameters.returns)
        return Handle(self.engine, id, workflow.result_type)

    # Talking

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
        commits, and not at all if that rolls back. Messages of one transaction keep their order [M5].

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
            >>> async def price_of(client: Client, item: str) -> float:
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

        Raises:
            ConfigurationError: if there are no `Settings.hmac_keys`.
            InvalidName: if the id or the topic cannot be one.
            ValueError: if `ttl` is not more than 0.

        Example:
            >>> def link(client: Client, order: str) -> str:
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

"""Client: talks to workflows from anywhere. It runs none."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload
from uuid import uuid4

from holdfast import _keys
from holdfast._api.talking import Talking
from holdfast._api.tokens import Tokens
from holdfast._codec import ErrorRegistry, encode_attributes
from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._primitives.handles import Handle
from holdfast._primitives.workflows import Call, Workflow, WorkflowRef
from holdfast._store import intents
from holdfast._store.commits import Answer, Code, Start
from holdfast.config import Settings, check_schema_name, seconds_of
from holdfast.errors import WorkflowConflict

R = TypeVar("R")
Existing = Literal["attach", "raise"]


class Client(Talking):
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

"""Runtime: a client that also runs workflows. The composition root."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

from holdfast._api.client import Client
from holdfast._engine.submissions import Answers
from holdfast._observe import point
from holdfast._primitives.workflows import Call, Workflow
from holdfast._run.context import install_births, remove_births
from holdfast._run.executor import Executor
from holdfast._run.plain_timers import install_timers, remove_timers
from holdfast._run.registry import Definition, Registry
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, Owner
from holdfast.config import Settings
from holdfast.errors import ConfigurationError, NotRunning, RegistrationError


class Runtime(Client):
    """Runs workflows as tasks of this process, and talks to them and to others. Inert until entered.

    `workflows`: what it can run, as `Workflow` objects or modules that hold them. `executor_name`: how this
    process is shown, host and process id by default. `app_version`: noted with what it starts. The rest as
    for `Client`.

    Entering adopts what dead processes have left PENDING [W13]. Leaving waits for no workflow: what runs is
    given back after `Settings.drain` seconds and goes on elsewhere or later [W11].

    Raises (when made):
        RegistrationError: if two workflows have one name.
        ConfigurationError: if an argument or result of one has a type that cannot be stored [K2].

    Example:
        >>> async def main(checkout: Workflow[[int], str]) -> None:
        ...     async with Runtime(workflows=[checkout]) as rt:
        ...         print(await rt.run(checkout(17), id="order-17"))
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        workflows: Iterable[Workflow[Any, Any] | ModuleType] = (),
        schema: str = "holdfast",
        executor_name: str | None = None,
        app_version: str | None = None,
        listen_dsn: str | None = None,
        migrate: bool = True,
        errors: Iterable[type[BaseException]] = (),
        settings: Settings | None = None,
    ) -> None:
        super().__init__(
            dsn, schema=schema, listen_dsn=listen_dsn, migrate=migrate, errors=errors, settings=settings
        )
        self._registry = Registry(_definitions(workflows))
        for definition in self._registry:
            definition.parameters.check_types()
        self._name = executor_name or f"{socket.gethostname()}:{os.getpid()}"
        self._app_version = app_version
        self._executor: Executor | None = None

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """An ASGI lifespan: `FastAPI(lifespan=rt.lifespan)`."""
        async with self:
            yield

    async def _serve(self, started: asyncio.Event, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        engine = self.engine
        executor = self._executor = Executor(engine, self._registry, self._name, self._app_version)
        install_births(loop)
        install_timers(loop)
        try:
            async with asyncio.TaskGroup() as group:
                machinery = group.create_task(engine.run(started), name="holdfast engine")
                running = group.create_task(executor.run(started), name="holdfast executor")
                await stopping.wait()
                await executor.aclose()
                running.cancel()
                machinery.cancel()
        finally:
            self._executor = None
            remove_timers(loop)
            remove_births(loop)

    @property
    def executor(self) -> Executor:
        """What runs the workflows.

        Raises:
            NotRunning: before the runtime has been entered, and after it has been left.
        """
        if self._executor is None:
            raise NotRunning("this Runtime is not running; use it inside `async with`")
        return self._executor

    async def _commit_start(
        self, call: Call[Any], workflow_id: str, timeout: float | None, attributes: str | None
    ) -> Answer:
        executor = self.executor
        definition = self._definition_of(call)
        here = definition is not None and executor.lease.executor is not None
        record = self._start_record(call, workflow_id, timeout, attributes, here=here)
        point("outside_start.before_commit")

        def launch(answers: Answers) -> None:
            if here and definition is not None and answers[0].code is Code.VALUE:
                executor.launch(
                    Run(executor, definition, Owner(workflow_id, 1)), record.input, record.timeout
                )

        # The workflow exists once it is committed, and must run even if the caller has gone by then.
        (answer,) = await executor.writer.commit(record, launch)
        point("outside_start.after_commit")
        return answer

    def _check_known(self, call: Call[Any]) -> None:
        self._definition_of(call)

    def _definition_of(self, call: Call[Any]) -> Definition | None:
        """The code to run a call with here; None if only a reference to it is known.

        Raises:
            RegistrationError: if the workflow was not given to this runtime, or is another of the same name.
        """
        known = self._registry.get(call.name)
        if call.target is not None and call.target is not known:
            raise RegistrationError(
                f"this runtime does not know workflow {call.name!r}; pass it in Runtime(workflows=[…]), "
                "or call it by WorkflowRef if another process runs it"
            )
        return known


def _definitions(sources: Iterable[Workflow[Any, Any] | ModuleType]) -> Iterator[Definition]:
    for source in sources:
        if isinstance(source, Workflow):
            yield source.definition
        elif isinstance(source, ModuleType):
            yield from (found.definition for found in vars(source).values() if isinstance(found, Workflow))
        else:
            raise ConfigurationError(
                f"Runtime(workflows=[…]) takes workflows and modules of them, not {type(source).__name__}"
            )

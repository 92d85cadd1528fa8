"""`conn=` as SQLAlchemy has it: sessions and connections over asyncpg."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import holdfast as hf
from holdfast._store.connection import Connection
from tests.callers.shop import LETTERS, shop
from tests.processes import Processes, within


class Base(DeclarativeBase):
    """The tables of an application."""


class Order(Base):
    """A row that goes with a workflow."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(urlunsplit(urlsplit(dsn)._replace(scheme="postgresql+asyncpg")))
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield made
    await made.dispose()


async def _session(session: AsyncSession) -> object:
    return session


async def _connection(session: AsyncSession) -> object:
    return await session.connection()


async def _scoped(session: AsyncSession) -> object:
    make: Any = lambda: session  # noqa: E731 - stands for a sessionmaker
    scoped: async_scoped_session[AsyncSession] = async_scoped_session(make, scopefunc=lambda: 1)
    await scoped.connection()
    return scoped


async def _pooled(session: AsyncSession) -> object:
    await session.flush()
    return await (await session.connection()).get_raw_connection()


async def _adapted(session: AsyncSession) -> object:
    pooled: Any = await _pooled(session)
    return pooled.dbapi_connection


async def _driver(session: AsyncSession) -> object:
    pooled: Any = await _pooled(session)
    return pooled.driver_connection


@pytest.mark.parametrize("given", [_session, _connection, _scoped, _pooled, _adapted, _driver])
async def test_a_row_and_its_workflow_are_one_commit(
    processes: Processes,
    database: Connection,
    engine: AsyncEngine,
    given: Callable[[AsyncSession], Awaitable[object]],
) -> None:
    rt = await processes.runtime(shop)
    make = async_sessionmaker(engine, expire_on_commit=False)
    for number, commits in enumerate([False, True, False, True]):
        async with make() as session:
            session.add(Order(id=number))
            conn = await given(session)
            await rt.start(shop(1), id=f"order-{number}", conn=conn)
            await rt.send(f"order-{number}", number, LETTERS, conn=conn)
            if commits:
                await session.commit()
            else:
                await session.rollback()
    assert [row[0] for row in await database.fetch("select id from orders order by id")] == [1, 3]
    assert [row[0] for row in await database.fetch("select id from holdfast.workflows order by id")] == [
        "order-1",
        "order-3",
    ]
    assert await within(2, rt.handle("order-3").result()) == [3]


@pytest.mark.parametrize("commits", [False, True])
async def test_a_transaction_that_sqlalchemy_has_yet_to_begin_is_begun(
    processes: Processes, database: Connection, engine: AsyncEngine, commits: bool
) -> None:
    """It begins one with its first statement: nothing may be committed past it before."""
    client = await processes.client()
    async with AsyncSession(engine) as session:
        await client.start(shop(1), id="one", conn=session)
        await session.execute(text("insert into orders values (1)"))
        assert await database.fetchval("select count(*) from holdfast.workflows") == 0
        await (session.commit() if commits else session.rollback())
    assert await database.fetchval("select count(*) from holdfast.workflows") == commits
    assert await database.fetchval("select count(*) from orders") == commits


async def test_a_raw_connection_without_its_transaction_is_refused(
    processes: Processes, database: Connection, engine: AsyncEngine
) -> None:
    client = await processes.client()
    async with engine.connect() as connection:
        pooled = await connection.get_raw_connection()
        with pytest.raises(hf.ConfigurationError, match="pass the AsyncSession"):
            await client.start(shop(1), id="one", conn=pooled)
        await connection.execute(text("select 1"))
        await client.start(shop(1), id="one", conn=pooled)
        await connection.rollback()
    assert await database.fetchval("select count(*) from holdfast.workflows") == 0


async def test_a_connection_in_autocommit_commits_at_once(
    processes: Processes, database: Connection, engine: AsyncEngine
) -> None:
    client = await processes.client()
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await client.start(shop(1), id="one", conn=connection)
        await client.start(shop(1), id="two", conn=await connection.get_raw_connection())
    assert await database.fetchval("select count(*) from holdfast.workflows") == 2


async def test_a_session_is_usable_after_a_refusal(
    processes: Processes, database: Connection, engine: AsyncEngine
) -> None:
    client = await processes.client()
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(id=1))
        with pytest.raises(hf.WorkflowNotFound):
            await client.send("nobody", 1, conn=session)
    assert await database.fetchval("select count(*) from orders") == 1


async def test_a_session_that_is_not_async_is_refused(processes: Processes, engine: AsyncEngine) -> None:
    client = await processes.client()
    async with AsyncSession(engine) as session:
        with pytest.raises(TypeError, match="not Session"):
            await client.start(shop(1), conn=session.sync_session)

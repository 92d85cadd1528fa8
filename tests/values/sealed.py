"""A codec that can tell for whom it has sealed, and a story that stores a payload of every kind.

Whoever gives the library a new kind of payload adds a chapter to the story; the tests of `test_codec` then
look at it in the tables, in a replay, in another process and from outside.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

import holdfast as hf
from holdfast._store.connection import Connection

MARK = b"sealed:"
SECRET = "hunter2"
"""Part of every value, argument and text of an error: not to be found in any column."""

letters = hf.Topic[str]("letters")
news = hf.Event[str]("news")
lines = hf.Stream[str]("lines")
GO = hf.Topic[str]("go")


class Seal:
    """Turns the bits round, and refuses what was sealed for another payload or with another key."""

    def __init__(self, key: int = 0xFF) -> None:
        self.key = key
        self.sealed: list[hf.PayloadContext] = []
        self.opened: list[hf.PayloadContext] = []

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        self.sealed.append(context)
        whole = json.dumps(msgspec.to_builtins(context)).encode() + b"\n" + data
        return MARK + bytes([self.key]) + bytes(byte ^ self.key for byte in whole)

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        if data[: len(MARK) + 1] != MARK + bytes([self.key]):
            raise ValueError("sealed with another key")
        whole = bytes(byte ^ self.key for byte in data[len(MARK) + 1 :])
        sealed_for, _, payload = whole.partition(b"\n")
        if msgspec.json.decode(sealed_for, type=hf.PayloadContext) != context:
            raise ValueError(f"sealed for {sealed_for!r}, opened for {context!r}")
        self.opened.append(context)
        return payload


def settings(codec: object) -> hf.Settings:
    """Settings with this codec."""
    return hf.Settings(codec=codec)  # type: ignore[arg-type]


# Chapters. Each takes the text of the story and gives back what it has seen of it.


@hf.step
async def same(text: str) -> str:
    return text


@hf.step
async def raises(text: str) -> str:
    raise LookupError(text)


@hf.step(attempts=2, wait_initial=0.001)
async def keeps_raising(text: str) -> str:
    raise LookupError(text)


@hf.step
async def talks(text: str) -> str:
    """Everything that a step may say."""
    me = hf.current().workflow_id
    await letters.send(me, text)
    await news.set(text)
    await lines.write(text)
    return await news.get(me)


@hf.transaction
async def transacts(connection: Connection, text: str) -> str:
    return str(await connection.fetchval("select $1 || $1", text))


@hf.transaction
async def cannot_transact(connection: Connection, text: str) -> str:
    raise LookupError(text)


@hf.workflow
async def child(text: str, *, times: int = 1, more: str = "") -> str:
    return text * times + more


@hf.workflow
async def failing_child(text: str) -> str:
    raise LookupError(text)


async def of_steps(text: str) -> list[str]:
    seen = [await same(text), await transacts(text), await talks(text)]
    for call in (raises, keeps_raising, cannot_transact):
        try:
            await call(text)
        except (LookupError, hf.StepFailed) as error:
            seen.append(f"{type(error).__name__} of {str(error.__cause__ or error).count(text)}")
    return seen


async def of_messages(text: str) -> list[str]:
    me = hf.current().workflow_id
    await letters.send(me, text)
    await hf.send(me, text, key=f"key of {me}")
    received = [await letters.recv(), await letters.recv(), await hf.recv(type=str)]
    return [*received, await letters.recv(timeout=0, default="none")]


async def of_events_and_streams(text: str) -> list[str]:
    me = hf.current().workflow_id
    await news.set(text)
    await news.set(text + "!")
    await lines.write(text, text + "!")
    return [await news.get(me), await hf.get_event(me, "news", type=str)]


async def of_children(text: str) -> list[str]:
    handle = await hf.start(child(text, times=2))
    seen = [await child(text, more=text), await handle.result()]
    try:
        await failing_child(text)
    except LookupError as error:
        seen.append(str(error))
    failed = await hf.start(failing_child(text))
    try:
        await failed.result()
    except hf.WorkflowFailed as error:
        seen.append(str(error.__cause__))
    return seen


async def of_chance(text: str) -> list[str]:
    return [str(await hf.now()), str(await hf.uuid()), str(await hf.random())]


async def of_refusals(text: str) -> list[str]:
    """What the database refuses is recorded as an error; see `refuse`."""
    try:
        await hf.set_event("refused", text)
    except hf.HoldfastError as error:
        return [type(error).__name__]
    return []


CHAPTERS = [of_steps, of_messages, of_events_and_streams, of_children, of_chance, of_refusals]


@hf.workflow
async def story(text: str, *, more: str) -> list[list[str]]:
    seen = [await chapter(text) for chapter in CHAPTERS]
    seen.append([await GO.recv()])
    return seen


@hf.workflow
async def fails(text: str) -> str:
    raise LookupError(text)


@hf.workflow
async def gives_what_cannot_be_stored(text: str) -> Any:  # noqa: ANN401
    return {text: object()}


@hf.workflow(timeout=0.05)
async def takes_too_long(text: str) -> str:
    return await letters.recv()


WORKFLOWS = (story, child, failing_child, fails, gives_what_cannot_be_stored, takes_too_long)


async def refuse(database: Connection) -> None:
    """A rule of a DBA, for the chapter of refusals."""
    await database.execute("alter table holdfast.events add check (key <> 'refused')")


async def payloads(database: Connection) -> list[tuple[str, bytes]]:
    """Every value of every bytea column of every table, with the column's name."""
    columns = await database.fetch(
        "select c.table_name, c.column_name from information_schema.columns c "
        "join information_schema.tables t using (table_schema, table_name) "
        "where c.table_schema = 'holdfast' and c.data_type = 'bytea' and t.table_type = 'BASE TABLE'"
    )
    found = []
    for table, column in columns:
        rows = await database.fetch(f'select "{column}" from holdfast."{table}" where "{column}" is not null')
        found += [(f"{table}.{column}", row[0]) for row in rows]
    return found


async def everything(database: Connection) -> str:
    """Every row of every table and view as text."""
    tables = await database.fetch(
        "select table_name from information_schema.tables where table_schema = 'holdfast'"
    )
    rows = [
        row[0]
        for (table,) in tables
        for row in await database.fetch(f'select t::text from holdfast."{table}" t')
    ]
    return "\n".join(rows)

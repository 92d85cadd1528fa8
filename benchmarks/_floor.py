"""The floor: raw asyncpg making the same commits, as durable as the library's, and nothing else.

Group commit of starts, steps, sends, claims and ends by one plpgsql function over arrays. No replay, no
retries, no ownership, no types: what is left when one takes everything from a workflow engine but its
commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import msgspec

SCHEMA = """
drop schema if exists floor cascade;
create schema floor;
create table floor.workflows (id text collate "C" primary key, name text, status smallint, input bytea,
    output bytea, created_at timestamptz default clock_timestamp(), finished_at timestamptz)
    with (fillfactor = 80);
create table floor.steps (workflow_id text collate "C", step_id text collate "C", name text, output bytea,
    finished_at timestamptz default clock_timestamp(), primary key (workflow_id, step_id));
create table floor.messages (id bigint generated always as identity primary key, workflow_id text collate "C",
    topic text, payload bytea, consumed_by text, created_at timestamptz default clock_timestamp());
create index on floor.messages (workflow_id, topic, id) where consumed_by is null;
create function floor.commit_batch(
    new_workflow text[], new_name text[], new_input bytea[],
    step_workflow text[], step_id text[], step_name text[], step_output bytea[],
    to_workflow text[], to_topic text[], to_payload bytea[],
    claim_workflow text[], claim_step text[], claim_topic text[],
    done_workflow text[], done_output bytea[], bell text
) returns table (place int, answer bytea) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off as $$
begin
    if cardinality(new_workflow) > 0 then
        insert into floor.workflows (id, name, status, input)
        select a, b, 1, c from unnest(new_workflow, new_name, new_input) t (a, b, c);
    end if;
    if cardinality(step_workflow) > 0 then
        insert into floor.steps (workflow_id, step_id, name, output)
        select a, b, c, d from unnest(step_workflow, step_id, step_name, step_output) t (a, b, c, d);
    end if;
    if cardinality(to_workflow) > 0 then
        insert into floor.messages (workflow_id, topic, payload)
        select a, b, c from unnest(to_workflow, to_topic, to_payload) with ordinality t (a, b, c, o)
        order by o;
    end if;
    if cardinality(claim_workflow) > 0 then
        return query
        with wanted as materialized (
            select t.w, t.i, t.o::int o, m.id message
            from unnest(claim_workflow, claim_step, claim_topic) with ordinality t (w, i, t, o)
            cross join lateral (
                select m.id from floor.messages m
                where m.workflow_id = t.w and m.topic = t.t and m.consumed_by is null
                order by m.id limit 1) m),
        taken as (
            update floor.messages m set consumed_by = wanted.i from wanted where m.id = wanted.message
            returning wanted.o, wanted.w, wanted.i, m.payload),
        recorded as (
            insert into floor.steps (workflow_id, step_id, name, output)
            select w, i, 'recv', payload from taken)
        select o, payload from taken;
    end if;
    if cardinality(done_workflow) > 0 then
        update floor.workflows w set status = 2, output = t.o, finished_at = clock_timestamp()
        from unnest(done_workflow, done_output) t (w, o) where w.id = t.w;
    end if;
    if bell <> '' then perform pg_notify('floor', bell); end if;
end $$;
"""
NEW, STEP, SEND, CLAIM, DONE = range(5)
WIDTHS = (3, 4, 3, 3, 2)
PLACES = ", ".join(f"${n}" for n in range(1, 17))
STATEMENT = f"select place, answer from floor.commit_batch({PLACES})"  # noqa: S608 - numbers
encode = msgspec.json.Encoder().encode


class Floor:
    """One connection, one batch in flight, everything that has gathered in the next one."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection
        self._queue: list[tuple[int, tuple[Any, ...], asyncio.Future[bytes | None]]] = []
        self._filled = asyncio.Event()

    def submit(self, kind: int, *row: Any) -> asyncio.Future[bytes | None]:  # noqa: ANN401
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._queue.append((kind, row, future))
        self._filled.set()
        return future

    async def run(self) -> None:
        statement = await self.connection.prepare(STATEMENT)
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue, []
            self._filled.clear()
            rows: list[list[tuple[Any, ...]]] = [[] for _ in WIDTHS]
            callers: list[list[asyncio.Future[bytes | None]]] = [[] for _ in WIDTHS]
            for kind, row, future in batch:
                rows[kind].append(row)
                callers[kind].append(future)
            columns: list[Sequence[Any]] = []
            for width, found in zip(WIDTHS, rows, strict=True):
                columns.extend(zip(*found, strict=True) if found else [()] * width)
            bells = "k" * min(7000, 16 * (len(callers[DONE]) + len(callers[SEND])))
            answers = {row[0]: row[1] for row in await statement.fetch(*columns, bells)}
            for place, future in enumerate(callers[CLAIM], 1):
                future.set_result(answers.get(place))
            for kind in (NEW, STEP, SEND, DONE):
                for future in callers[kind]:
                    future.set_result(None)


@contextlib.asynccontextmanager
async def floor(dsn: str) -> AsyncIterator[Floor]:
    """The floor's tables, made anew, and its writer."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(SCHEMA)
    writer = Floor(connection)
    running = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        running.cancel()
        await asyncio.wait([running])
        await connection.close(timeout=5)


async def workflow(writer: Floor, number: int, steps: int) -> None:
    """The commits of one workflow: its row, its steps, its end."""
    workflow_id = str(uuid.uuid4())
    await writer.submit(NEW, workflow_id, "work", encode([number]))
    for step in range(steps):
        await writer.submit(STEP, workflow_id, str(step), "step", encode(step))
    await writer.submit(DONE, workflow_id, encode(number))


class Inbox:
    """Who waits for messages of one workflow, woken in memory."""

    def __init__(self, writer: Floor, workflow_id: str) -> None:
        self.writer = writer
        self.workflow_id = workflow_id
        self.woken = asyncio.Event()

    async def send(self, payload: bytes) -> None:
        await self.writer.submit(SEND, self.workflow_id, "t", payload)
        self.woken.set()

    async def receive(self, step: str) -> bytes:
        while True:
            self.woken.clear()
            found = await self.writer.submit(CLAIM, self.workflow_id, step, "t")
            if found is not None:
                return found
            await self.woken.wait()

"""The functions for SQL, called by a connection that knows nothing of the library."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast as hf
from holdfast import _keys
from holdfast._sql.migrate import migrate
from holdfast._store.connection import Connection
from holdfast.types import PayloadContext
from tests.callers.shop import LETTERS, patient, shop
from tests.processes import Processes, Waits, connect, within

README = Path(__file__).parents[2] / "sql" / "README.md"
START = "select holdfast.start($1, $2)"
SEND = "select holdfast.send($1, $2, $3, $4)"
UNKNOWN = "P0002"
ENDED = "55000"
INVALID = "22023"
TAKEN = "23505"
TOO_LARGE = "54000"
NOT_JSON = "0A000"


async def refused(connection: Connection, query: str, *arguments: object) -> tuple[str, str]:
    """The state and the text of the error that a query ends with."""
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.fetch(query, *arguments)
    return caught.value.sqlstate, str(caught.value)


# Starting


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"count": 2, "note": "all"}', ["all", 1, 2]),
        ("[2]", [1, 2]),
        ('{"*": [2], "note": "both"}', ["both", 1, 2]),
    ],
    ids=["keyword arguments", "positional ones", "both"],
)
async def test_start_takes_arguments_by_name_and_by_place(
    processes: Processes, database: Connection, given: str, said: list[Any]
) -> None:
    rt = await processes.runtime(shop)
    workflow = await database.fetchval(START, "shop", given)
    await database.execute(
        "select holdfast.send($1, 'letters', '1'), holdfast.send($1, 'letters', '2')", workflow
    )
    assert await within(5, rt.handle(workflow).result()) == said


async def test_start_without_arguments_and_without_an_id(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(shop)
    ids = [await database.fetchval("select holdfast.start('shop')") for _ in range(20)]
    assert [uuid.UUID(made).version for made in ids] == [7] * 20
    assert ids == sorted(ids)
    assert {uuid.UUID(made).variant for made in ids} == {uuid.RFC_4122}
    assert abs(int(ids[0][:8], 16) - int(_keys.new_workflow_id()[:8], 16)) <= 1
    assert (await rt.handle(ids[0]).status()).name == "shop"


async def test_w1_the_same_id_and_name_again_attaches(database: Connection) -> None:
    start = "select holdfast.start($1, '[]', 'one')"
    assert [await database.fetchval(start, "shop") for _ in range(3)] == ["one"] * 3
    async with database.transaction():
        assert await database.fetchval("select holdfast.start('shop', '[1]', id => 'two')") == "two"
        assert await database.fetchval("select holdfast.start('shop', '[2]', id => 'two')") == "two"
    stored = await database.fetch(
        "select id, convert_from(input, 'UTF8') from holdfast.workflows order by id"
    )
    assert [tuple(row) for row in stored] == [("one", "[]"), ("two", "[1]")]
    assert await refused(database, start, "other") == (
        TAKEN,
        "workflow 'one' exists, and is a 'shop', not a 'other'",
    )
    strict = "select holdfast.start('shop', '[]', 'one', on_existing => 'raise')"
    assert await refused(database, strict) == (TAKEN, "workflow 'one' exists already")


async def test_start_stores_what_it_is_told(processes: Processes, database: Connection) -> None:
    await database.execute(
        """select holdfast.start('patient', '[]', 'one', attributes => '{"tier": "gold"}', timeout => 0.05)"""
    )
    (stored,) = await database.fetch(
        "select attributes, timeout, status, start_token from holdfast.workflows"
    )
    assert (json.loads(stored[0]), stored[1], stored[2]) == ({"tier": "gold"}, 0.05, 0)
    rt = await processes.runtime(patient)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, rt.handle("one").result())


@pytest.mark.parametrize(
    "call",
    [
        "start('')",
        "start(null)",
        "start(repeat('n', 257))",
        "start('w', '[]', '')",
        "start('w', '[]', repeat('ä', 257))",
        "start('w', '1')",
        """start('w', '"text"')""",
        "start('w', 'null')",
        """start('w', '{"*": 1}')""",
        "start('w', attributes => '[]')",
        "start('w', attributes => 'null')",
        "start('w', timeout => -1)",
        "start('w', timeout => 'NaN')",
        "start('w', timeout => 'Infinity')",
        "start('w', on_existing => 'ignore')",
        "start('w', on_existing => null)",
        "send('', null, 'null')",
        "send(null, null, 'null')",
        "send('w', '', 'null')",
        "send('w', repeat('t', 257), 'null')",
        "send('w', null, 'null', '')",
        "send('w', null, 'null', repeat('€', 86))",
        "get_event('w', null)",
        "get_event('w', '')",
        "get_event('', 'k')",
        "read_stream('w', '')",
        "read_stream('w', 's', max_values => -1)",
        "cancel('')",
        "cancel(null)",
    ],
)
async def test_k1_what_cannot_be_is_refused(database: Connection, call: str) -> None:
    state, text = await refused(database, f"select holdfast.{call}")
    assert state == INVALID
    assert "ä" not in text
    assert not await database.fetchval("select exists (select from holdfast.workflows)")


async def test_k1_the_longest_names_and_strange_ones_are_taken(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(shop)
    for workflow in ("€" * 170 + "ab", "%s $1 '; -- \" \\ ‏אבג", "a::b"):
        await database.execute("select holdfast.start('shop', '[]', $1)", workflow)
        await database.execute(
            "select holdfast.send($1, 'letters', to_jsonb($1::text), $2)", workflow, "k" * 256
        )
        assert await within(5, rt.handle(workflow).result()) == [workflow]
        assert await database.fetchval("select holdfast.get_event($1, 'last')", workflow) == json.dumps(
            workflow, ensure_ascii=False
        )


async def test_k2_more_than_16_mib_is_refused(database: Connection) -> None:
    await database.execute("select holdfast.start('shop', '[]', 'one')")
    state, _ = await refused(database, "select holdfast.send('one', null, to_jsonb(repeat('x', 1 << 24)))")
    assert state == TOO_LARGE
    state, _ = await refused(
        database, "select holdfast.start('shop', jsonb_build_array(repeat('x', 1 << 24)))"
    )
    assert state == TOO_LARGE


# Sending


async def test_m2_a_message_needs_a_workflow_that_has_not_ended(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(shop)
    assert await refused(database, SEND, "nobody", None, "1", None) == (
        UNKNOWN,
        "there is no workflow 'nobody'",
    )
    handle = await rt.start(shop(1), id="one")
    await database.execute(SEND, "one", "letters", "1", "k")
    assert await handle.result() == [1]
    assert await refused(database, SEND, "one", "letters", "1", None) == (ENDED, "workflow 'one' has ended")
    assert (await refused(database, SEND, "one", "letters", "1", "other"))[0] == ENDED
    await database.execute(SEND, "one", "letters", "2", "k")  # accepted before the end: dropped [M3]
    assert await database.fetchval("select count(*) from holdfast.messages") == 1


async def test_m2_what_is_cancelled_or_not_yet_run_takes_messages(database: Connection) -> None:
    await database.execute("select holdfast.start('shop', '[]', 'one')")
    await database.execute(SEND, "one", None, "1", None)
    assert await database.fetchval("select holdfast.cancel('one')") is True
    await database.execute(SEND, "one", None, "2", None)
    assert await database.fetchval("select count(*) from holdfast.messages where topic = ''") == 2


async def test_m3_the_same_key_again_is_dropped(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(3), id="one")
    await database.execute(SEND, "one", "letters", "1", "k")
    await database.execute(SEND, "one", "other", "2", "k")
    async with database.transaction():
        await database.execute(SEND, "one", "letters", "3", "l")
        await database.execute(SEND, "one", "letters", "4", "l")
    await rt.send("one", 5, LETTERS, key="l")
    await rt.send("one", 6, LETTERS)
    assert await within(5, handle.result()) == [1, 3, 6]


async def test_m5_messages_of_one_transaction_keep_their_order(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(202), id="one")
    await rt.send("one", -1, LETTERS)
    async with database.transaction():
        await database.execute(
            "select holdfast.send('one', 'letters', to_jsonb(n), case when n % 3 = 0 then n::text end) "
            "from generate_series(1, 200) n"
        )
    await rt.send("one", 201, LETTERS)
    assert await within(10, handle.result()) == [-1, *range(1, 202)]


async def test_a_null_message_is_none(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(2), id="one")
    await database.execute(
        "select holdfast.send('one', 'letters', null), holdfast.send('one', 'letters', 'null')"
    )
    assert await within(5, handle.result()) == [None, None]
    assert await database.fetchval("select holdfast.get_event('one', 'last')") == "null"


# Looking


async def test_an_event_that_is_not_set_is_null(database: Connection) -> None:
    assert await database.fetchval("select holdfast.get_event('nobody', 'k') is null")
    await database.execute("select holdfast.start('shop', '[]', 'one')")
    assert await database.fetchval("select holdfast.get_event('one', 'k') is null")


async def test_e1_an_event_is_its_latest_value(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(3), id="one")
    for number in range(3):
        await rt.send("one", {"n": number}, LETTERS)
    await handle.result()
    assert json.loads(await database.fetchval("select holdfast.get_event('one', 'last')")) == {"n": 2}
    assert await database.fetchval("select holdfast.get_event('one', 'last') ->> 'n'") == "2"


async def test_s6_a_stream_is_read_behind_an_offset_so_many_at_once(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(5), id="one")
    for number in range(5):
        await rt.send("one", number * 10, LETTERS)
    await handle.result()

    async def read(call: str) -> list[tuple[int, Any]]:
        found = await database.fetch(f'select "offset", value from holdfast.read_stream({call})')
        return [(row["offset"], json.loads(row["value"])) for row in found]

    assert await read("'one', 'log'") == [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]
    assert await read("'one', 'log', 2") == [(3, 30), (4, 40)]
    assert await read("'one', 'log', max_values => 2") == [(0, 0), (1, 10)]
    assert await read("'one', 'log', after => -1, max_values => null") == await read("'one', 'log'")
    assert await read("'one', 'log', 4") == []
    assert await read("'one', 'other'") == []
    assert await refused(database, "select holdfast.read_stream('nobody', 'log')") == (
        UNKNOWN,
        "there is no workflow 'nobody'",
    )


async def test_s5_a_hole_in_a_stream_is_not_hidden(processes: Processes, database: Connection) -> None:
    await database.execute(
        """
        select holdfast.start('shop', '[]', 'one');
        insert into holdfast.streams (workflow_id, key, oldest, step_id) values ('one', 'log', 5, '1');
        insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
        values ('one', 'log', 5, '50', 1, '1', now());
        """
    )
    read = "select value from holdfast.read_stream('one', 'log', $1)"
    assert await database.fetchval(read, None) == await database.fetchval(read, 4) == "50"
    assert await refused(database, read, 3) == (
        ENDED,
        "values of this stream before offset 5 are no longer kept",
    )


class Mirror:
    """What a codec makes of bytes is not JSON, nor any text."""

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        return b"\xff" + data[::-1]

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        return data[:0:-1]


class Letters:
    """What this one makes is text, but not JSON."""

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        return b"sealed:" + data.hex().encode()

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        return bytes.fromhex(data[7:].decode())


@pytest.mark.parametrize("codec", [Mirror(), Letters()], ids=["bytes", "text"])
async def test_k3_k4_a_value_behind_a_codec_is_an_error_that_shows_nothing(
    processes: Processes, database: Connection, codec: Mirror | Letters
) -> None:
    rt = await processes.runtime(shop, settings=hf.Settings(codec=codec))
    handle = await rt.start(shop(1), id="one")
    await rt.send("one", "secret", LETTERS)
    await handle.result()
    for query in ("select holdfast.get_event('one', 'last')", "select holdfast.read_stream('one', 'log')"):
        with pytest.raises(asyncpg.FeatureNotSupportedError, match=r"Settings\.codec is in use") as caught:
            await database.fetch(query)
        told = str(caught.value.as_dict())
        assert "secret" not in told
        assert "sealed" not in told
        assert b"secret".hex() not in told


async def test_a_value_with_nul_in_it_is_an_error(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(1), id="one")
    await rt.send("one", "a\0b", LETTERS)
    await handle.result()
    state, text = await refused(database, "select holdfast.get_event('one', 'last')")
    assert (state, "character that jsonb cannot hold" in text) == (NOT_JSON, True)


# Cancelling


async def test_w10_cancel_says_whether_it_was_active(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    cancel = "select holdfast.cancel('one')"
    assert await refused(database, cancel) == (UNKNOWN, "there is no workflow 'one'")
    await database.execute("select holdfast.start('patient', '[]', 'one')")
    assert await database.fetchval(cancel) is True
    assert await database.fetchval("select status from holdfast.workflow_list") == "CANCELLED"
    assert await database.fetchval(cancel) is False
    rt = await processes.runtime(patient)
    handle = await rt.start(patient(), id="two")
    await waits.on("message", "two", "never")
    assert await database.fetchval("select holdfast.cancel('two')") is True
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, handle.result())


# In the caller's transaction

EFFECTS = [
    "select holdfast.start('shop', '[]', 'new')",
    "select holdfast.send('one', 'letters', '1')",
    "select holdfast.send('one', 'letters', '1', 'k')",
    "select holdfast.cancel('one')",
    "select holdfast.start('shop', '[]', 'new'), holdfast.send('new', null, '1'), holdfast.cancel('new')",
]


async def _stored(connection: Connection) -> list[list[tuple[Any, ...]]]:
    tables = ("workflows", "messages", "intents")
    return [
        [tuple(row) for row in await connection.fetch(f"select * from holdfast.{name}")] for name in tables
    ]


@pytest.mark.parametrize("effect", EFFECTS)
async def test_nothing_is_seen_before_the_commit_and_nothing_left_by_a_rollback(
    database: Connection, dsn: str, effect: str
) -> None:
    await database.execute("select holdfast.start('shop', '[]', 'one')")
    caller = await connect(dsn)
    before = await _stored(database)
    transaction = caller.transaction()
    await transaction.start()
    await caller.execute(effect)
    assert await _stored(database) == before
    await transaction.rollback()
    assert await _stored(database) == before
    async with caller.transaction():
        await caller.execute(effect)
    assert await _stored(database) != before
    assert (await _stored(database))[-1] == []
    await caller.close()


async def test_what_a_savepoint_takes_back_is_gone_and_the_rest_is_done(database: Connection) -> None:
    await database.execute("select holdfast.start('shop', '[]', 'one')")
    async with database.transaction():
        first = database.transaction()
        await first.start()
        await database.execute("select holdfast.start('shop', '[]', 'gone'), holdfast.send('one', null, '1')")
        await first.rollback()
        await database.execute("select holdfast.send('one', null, '2')")
        await refused_in_savepoint(database)
        await database.execute("select holdfast.start('shop', '[]', 'there')")
    assert [row[0] for row in await database.fetch("select id from holdfast.workflows order by id")] == [
        "one",
        "there",
    ]
    assert await database.fetchval("select array_agg(message) from holdfast.message_list") == ["2"]


async def refused_in_savepoint(connection: Connection) -> None:
    """What was taken back is unknown again."""
    try:
        async with connection.transaction():
            await connection.execute("select holdfast.send('gone', null, '1')")
    except asyncpg.NoDataFoundError:
        return
    raise AssertionError("a workflow that was taken back takes messages")


async def test_constraints_made_immediate_do_it_there_and_then(database: Connection) -> None:
    async with database.transaction():
        await database.execute("select holdfast.start('shop', '[]', 'one')")
        await database.execute("set constraints all immediate")
        assert await database.fetchval("select count(*) from holdfast.workflows") == 1
        await database.execute("select holdfast.send('one', null, '1')")
        assert await database.fetchval("select count(*) from holdfast.messages") == 1
        await database.execute("set constraints all deferred")
        await database.execute("select holdfast.send('one', null, '2')")
        assert await database.fetchval("select count(*) from holdfast.messages") == 1
    assert await database.fetchval("select count(*) from holdfast.messages") == 2


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_every_isolation_will_do(processes: Processes, database: Connection, isolation: str) -> None:
    rt = await processes.runtime(shop)
    async with database.transaction(isolation=isolation):  # type: ignore[arg-type]
        await database.execute(
            "select holdfast.start('shop', '[]', 'one'), holdfast.send('one', 'letters', '1')"
        )
    assert await within(5, rt.handle("one").result()) == [1]


async def test_a_trigger_of_the_caller_sends(processes: Processes, database: Connection) -> None:
    """Also one that is deferred itself, and so runs while the transaction commits."""
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(2), id="one")
    await database.execute(
        """
        create table public.payments (workflow_id text, amount integer);
        create function public.tell() returns trigger language plpgsql as $$
        begin
            perform holdfast.send(new.workflow_id, 'letters', to_jsonb(new.amount));
            return null;
        end $$;
        create trigger now after insert on public.payments for each row execute function public.tell();
        create constraint trigger later after insert on public.payments deferrable initially deferred
            for each row execute function public.tell();
        """
    )
    await database.execute("insert into public.payments values ('one', 30)")
    assert await within(5, handle.result()) == [30, 30]


# Where it is installed, and who may


async def test_the_channel_and_the_keys_are_python_s(empty_dsn: str) -> None:
    connection = await connect(empty_dsn)
    for schema in ("holdfast", "elsewhere", "a" * 63):
        await migrate(connection, schema)
        assert await connection.fetchval(f"select {schema}.channel()") == _keys.channel(schema)
        key = await connection.fetchval(f"select {schema}.wake_key('message', 'ä', 'b')")
        assert key == _keys.wake_key("message", "ä", "b")
    await connection.close()


async def test_another_schema_has_functions_of_its_own(empty_dsn: str) -> None:
    connection = await connect(empty_dsn)
    async with hf.Runtime(empty_dsn, workflows=[shop], schema="elsewhere") as rt:
        workflow = await connection.fetchval("select elsewhere.start('shop', '[2]')")
        await connection.execute("select elsewhere.send($1, 'letters', '1')", workflow)
        async with connection.transaction():
            await rt.send(workflow, 2, LETTERS, conn=connection)
        assert await within(5, rt.handle(workflow).result()) == [1, 2]
        assert await connection.fetchval("select elsewhere.get_event($1, 'last')", workflow) == "2"
        assert not await connection.fetchval("select elsewhere.cancel($1)", workflow)
    await connection.close()


@pytest.fixture
async def guest(database: Connection, dsn: str) -> AsyncIterator[Connection]:
    """A connection of a role that has what the README says it needs, and nothing else."""
    (grants,) = re.findall(r"```sql\n(grant .*?)```", README.read_text("utf-8"), re.DOTALL)
    role = f"guest_{uuid.uuid4().hex}"
    await database.execute(f"create role {role}")
    await database.execute(grants.replace(" app;", f" {role};"))
    connection = await connect(dsn)
    await connection.execute(f"set role {role}")
    yield connection
    await connection.close()
    await database.execute(f"drop owned by {role}; drop role {role}")


async def test_a_role_needs_what_the_readme_says(
    processes: Processes, database: Connection, guest: Connection
) -> None:
    rt = await processes.runtime(shop, patient)
    one = await guest.fetchval("select holdfast.start('shop', '[1]')")
    await guest.execute("select holdfast.send($1, 'letters', '1', 'k')", one)
    assert await within(5, rt.handle(one).result()) == [1]
    assert await guest.fetchval("select holdfast.get_event($1, 'last')", one) == "1"
    assert len(await guest.fetch("select * from holdfast.read_stream($1, 'log')", one)) == 1
    async with guest.transaction():
        two = await rt.start(patient(), conn=guest)
        await rt.send(two.id, 1, conn=guest)
    assert await guest.fetchval("select holdfast.cancel($1)", two.id)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, two.result())
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await guest.fetch("select * from holdfast.steps")


async def test_a_role_without_rights_is_told(database: Connection, dsn: str) -> None:
    role = f"stranger_{uuid.uuid4().hex}"
    await database.execute(f"create role {role}")
    connection = await connect(dsn)
    await connection.execute(f"set role {role}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema holdfast"):
        await connection.fetch("select holdfast.start('shop')")
    await connection.close()
    await database.execute(f"drop role {role}")


# Values

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def test_k2_values_are_the_same_from_sql_to_python_and_back(dsn: str) -> None:
    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(JSON, min_size=60, max_size=60))
    def check(values: list[Any]) -> None:
        asyncio.run(_round_trip(dsn, values))

    check()


async def _round_trip(dsn: str, values: list[Any]) -> None:
    connection = await connect(dsn)
    async with hf.Runtime(dsn, workflows=[shop]) as rt:
        written = [json.dumps(value) for value in values]
        one = await connection.fetchval("select holdfast.start('shop', $1)", json.dumps([len(values)]))
        await connection.executemany(
            "select holdfast.send($1, 'letters', $2)", [(one, text) for text in written]
        )
        received = await within(10, rt.handle(one).result())
        kept = await connection.fetch("select $1::jsonb[] as given", written)
        assert received == [json.loads(text) for text in kept[0]["given"]]
        seen = await connection.fetch("select value from holdfast.read_stream($1, 'log')", one)
        same = await connection.fetchval(
            "select bool_and(a is not distinct from b) from unnest($1::jsonb[], $2::jsonb[]) as t (a, b)",
            [row["value"] for row in seen],
            [json.dumps(value) for value in received],
        )
        assert same
        assert len(seen) == len(values)
    await connection.close()

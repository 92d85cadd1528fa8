"""The border to the driver: settings, deadlines, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
import traceback
from urllib.parse import urlsplit

import asyncpg
import pytest

from holdfast._store.connection import (
    Connection,
    ConnectionLost,
    DataRejected,
    Retryable,
    StoreError,
    UniqueViolation,
    connect,
    deadline,
    translate,
)
from holdfast.errors import ConfigurationError, WaitTimeout
from holdfast.testing.faults import Proxy

SECRET = "s3cr3t"


def told(error: BaseException) -> str:
    """Everything that a log would show of an error."""
    return "".join(traceback.format_exception(error))


async def test_defaults_of_a_dba_do_not_bite(dsn: str, admin: Connection) -> None:
    database = urlsplit(dsn).path.removeprefix("/")
    bites = {
        "statement_timeout": "1ms",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "1ms",
        "idle_session_timeout": "1ms",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
    }
    for name, value in bites.items():
        await admin.execute(f"alter database {database} set {name} = '{value}'")
    connection = await connect(dsn, role="test")
    await connection.execute("create table t (n int); select pg_sleep(0.05)")
    for name, value in bites.items():
        assert await connection.fetchval("select current_setting($1)", name) != value
    assert await connection.fetchval("show transaction_isolation") == "read committed"
    connection.terminate()


async def test_its_role_is_seen_by_the_dba(dsn: str, admin: Connection) -> None:
    connection = await connect(dsn, role="listener")
    pid = connection.get_server_pid()
    name = await admin.fetchval("select application_name from pg_stat_activity where pid = $1", pid)
    assert name == "holdfast listener"
    connection.terminate()


async def test_both_kernels_keep_an_eye_on_the_other(dsn: str) -> None:
    async with Proxy(dsn) as proxy:  # TCP, whatever the server listens on
        connection = await connect(proxy.dsn, role="test")
        transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        connection.terminate()


async def test_nobody_there() -> None:
    dsn = f"postgresql://me:{SECRET}@{'.'.join(['127', '0', '0', '1'])}:1/db"
    with pytest.raises(ConnectionLost) as caught:
        await connect(dsn, role="test")
    assert "Connection refused" in str(caught.value)
    assert SECRET not in told(caught.value)
    assert "127.0.0.1" not in told(caught.value)


async def test_a_server_that_does_not_talk_is_given_up(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        proxy.swallow()
        started = time.monotonic()
        with pytest.raises(ConnectionLost, match="did not answer in time"):
            await connect(proxy.dsn, role="test", timeout=0.2)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://me:{SECRET}@localhost/db",
        f"postgresql://me:x@localhost:{SECRET}/db",
        f"postgresql://{SECRET}@[/x",
    ],
)
async def test_k4_a_dsn_that_makes_no_sense_is_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await connect(dsn, role="test")
    assert SECRET not in told(caught.value)


def ssl_error(kind: type[ssl.SSLError], reason: str, **facts: object) -> ssl.SSLError:
    """An error as OpenSSL raises it; its text names the host."""
    error = kind(1, f"[SSL: {reason}] failed for '{SECRET}.example.com' (_ssl.c:1000)")
    vars(error).update(facts)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            ssl_error(
                ssl.SSLCertVerificationError,
                "CERTIFICATE_VERIFY_FAILED",
                verify_code=18,
                verify_message="self-signed certificate",
            ),
            ConfigurationError,
            r"certificate .* cannot be verified \(self-signed certificate\): check sslmode",
        ),
        (
            ssl_error(
                ssl.SSLCertVerificationError,
                "CERTIFICATE_VERIFY_FAILED",
                verify_code=62,
                verify_message=f"Hostname mismatch, certificate is not valid for '{SECRET}.example.com'",
            ),
            ConfigurationError,
            r"cannot be verified \(made out to another host\)",
        ),
        (
            ssl_error(ssl.SSLError, "WRONG_VERSION_NUMBER"),
            ConnectionLost,
            r"encryption .* failed \(WRONG_VERSION_NUMBER\)",
        ),
    ],
    ids=["unknown", "another host", "no agreement"],
)
async def test_k4_errors_of_the_encryption_say_so_and_name_nobody(
    monkeypatch: pytest.MonkeyPatch, error: ssl.SSLError, kind: type[Exception], says: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncpg, "connect", refuse)
    with pytest.raises(kind, match=says) as caught:
        await connect("postgresql://localhost/db", role="test")
    assert SECRET not in told(caught.value)


async def test_a_database_that_does_not_exist(dsn: str) -> None:
    path = urlsplit(dsn).path
    with pytest.raises(ConfigurationError, match="InvalidCatalogNameError"):
        await connect(dsn.replace(path, "/no_such_database"), role="test")


async def test_no_connection_to_spare_is_a_matter_of_time(limited_dsn: str) -> None:
    only = await connect(limited_dsn, role="test")
    with pytest.raises(Retryable, match="53300"):
        await connect(limited_dsn, role="test")
    only.terminate()


def raising(code: str) -> str:
    return f"do $$ begin raise exception 'as told' using errcode = '{code}'; end $$"


@pytest.mark.parametrize(
    ("sql", "kind", "state"),
    [
        ("select 1 / 0", DataRejected, "22012"),
        ("select 'x'::uuid", DataRejected, "22P02"),
        ("insert into t values (1)", UniqueViolation, "23505"),
        ("insert into t values (null)", DataRejected, "23502"),
        (raising("54000"), DataRejected, "54000"),
        (raising("40001"), Retryable, "40001"),
        (raising("40P01"), Retryable, "40P01"),
        (raising("55P03"), Retryable, "55P03"),
        (raising("53100"), Retryable, "53100"),
        (raising("57014"), Retryable, "57014"),
        (raising("57P01"), ConnectionLost, "57P01"),
        (raising("57P03"), ConnectionLost, "57P03"),
        (raising("25006"), ConnectionLost, "25006"),
        ("select pg_terminate_backend(pg_backend_pid())", ConnectionLost, "57P01"),
    ],
)
async def test_what_the_server_says_is_classified(
    admin: Connection, dsn: str, sql: str, kind: type[StoreError], state: str
) -> None:
    await admin.execute("create table t (n int primary key); insert into t values (1)")
    connection = await connect(dsn, role="test")
    with pytest.raises(StoreError) as caught, translate():
        await connection.execute(sql)
    assert type(caught.value) is kind
    assert caught.value.sqlstate in (state, "08003")
    connection.terminate()


async def test_a_unique_violation_names_its_constraint(admin: Connection) -> None:
    await admin.execute("create table t (n int constraint only_once primary key)")
    with pytest.raises(UniqueViolation) as caught, translate():
        await admin.execute("insert into t values (1), (1)")
    assert caught.value.constraint == "only_once"


async def test_a_plan_that_died_under_a_migration_may_be_sent_again(admin: Connection, dsn: str) -> None:
    await admin.execute("create table t (n int)")
    connection = await connect(dsn, role="test")
    await connection.fetch("select * from t")
    await admin.execute("alter table t alter n type bigint")
    with pytest.raises(Retryable), translate():
        async with connection.transaction():
            await connection.fetch("select * from t")
    with translate():
        assert await connection.fetch("select * from t") == []
    connection.terminate()


async def test_a_fault_of_the_program_passes_as_it_is(admin: Connection) -> None:
    with pytest.raises(asyncpg.UndefinedTableError), translate():
        await admin.execute("select * from nowhere")
    with pytest.raises(WaitTimeout), translate():
        raise WaitTimeout  # an OSError by birth
    with pytest.raises(KeyError), translate():
        raise KeyError


@pytest.mark.parametrize(
    "sql", ["select $1::text::uuid", "insert into t values (null, $1)", "select $1::bigint"]
)
async def test_k4_refused_data_is_not_repeated(
    admin: Connection, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    await admin.execute("create table t (n int not null, payload text)")
    with pytest.raises(DataRejected) as caught, translate():
        await admin.execute(sql, SECRET)
    assert SECRET not in told(caught.value)
    with caplog.at_level(logging.ERROR):
        logging.getLogger("holdfast").error("batch", exc_info=caught.value)
    assert SECRET not in caplog.text


async def test_a_closed_connection_is_lost(dsn: str) -> None:
    connection = await connect(dsn, role="test")
    statement = await connection.prepare("select 1")
    connection.terminate()
    with pytest.raises(ConnectionLost), translate():
        await connection.execute("select 1")
    with pytest.raises(ConnectionLost), translate():
        await statement.fetch()


async def test_a_deadline_kills_the_connection_and_says_so(admin: Connection, dsn: str) -> None:
    connection = await connect(dsn, role="test")
    started = time.monotonic()
    with pytest.raises(ConnectionLost, match=r"within 0\.1 s"):
        async with deadline(connection, 0.1):
            await connection.execute("select pg_sleep(30)")
    assert time.monotonic() - started < 5
    assert connection.is_closed()


async def test_a_deadline_that_is_kept_leaves_no_trace(dsn: str) -> None:
    connection = await connect(dsn, role="test")
    async with deadline(connection, 1):
        assert await connection.fetchval("select 1") == 1
    await connection.execute("select pg_sleep(1.1)")
    connection.terminate()


async def test_a_deadline_holds_in_a_black_hole_and_in_a_transaction(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await connect(proxy.dsn, role="test")
        started = time.monotonic()
        with pytest.raises(ConnectionLost):  # noqa: PT012
            async with deadline(connection, 0.2), connection.transaction():
                proxy.swallow()
                await connection.execute("select 1")
        assert time.monotonic() - started < 5


async def test_a_cancellation_in_a_black_hole_is_not_lost_in_the_drivers_clean_up(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await connect(proxy.dsn, role="test")
        sent = asyncio.Event()

        async def work() -> None:
            async with deadline(connection, 2), connection.transaction():
                proxy.swallow()
                sent.set()
                await connection.execute("select 1")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(work())
            await sent.wait()
            started = time.monotonic()
            task.cancel()
        assert task.cancelled()
        assert time.monotonic() - started < 5


async def test_a_timeout_of_the_caller_inside_a_deadline_stays_the_callers(dsn: str) -> None:
    connection = await connect(dsn, role="test")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), deadline(connection, 5):
            await connection.execute("select pg_sleep(30)")
    connection.terminate()

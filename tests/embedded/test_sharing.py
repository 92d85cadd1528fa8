"""One server per home, whoever comes and goes, and however."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from holdfast.embedded import Embedded, cluster
from holdfast.embedded.accounts import choose
from holdfast.embedded.binaries import _candidates, major_of
from holdfast.errors import ConfigurationError
from tests.embedded.homes import (
    StartUser,
    WrapProgram,
    copy_home,
    drafts_of,
    kill_server,
    log_of,
    postmaster,
    wait_for,
)


async def ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_home_is_created_and_its_data_outlives_the_server(cold: Path) -> None:
    with Embedded(cold) as dsn:
        await execute(dsn, "create table kept as select 42 as answer")
        assert await ask(dsn, "show fsync") == "on"
        assert await ask(dsn, "show server_encoding") == "UTF8"
        assert await ask(
            dsn, "select lower('ÄÖÜ') = 'äöü' or current_setting('server_version_num')::int < 170000"
        )
        assert postmaster(cold)
    assert not postmaster(cold)
    with Embedded(cold) as dsn:
        assert await ask(dsn, "select answer from kept") == 42


@pytest.mark.parametrize("binaries", dict.fromkeys(_candidates()), ids=lambda folder: str(major_of(folder)))
def test_every_postgresql_there_is(cold: Path, binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (major_of(binaries) or 0) < 15 or not major_of(binaries, choose(cold)):
        pytest.skip("too old, or the account that has to run it cannot")
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(binaries))
    with Embedded(cold, durable=False) as dsn:
        version = asyncio.run(ask(dsn, "select current_setting('server_version_num')::int / 10000"))
    assert version == major_of(binaries)
    monkeypatch.delenv("HOLDFAST_POSTGRES_BIN")
    with Embedded(cold, durable=False) as dsn:  # found again by its version, whatever would come first
        assert asyncio.run(ask(dsn, "select current_setting('server_version_num')::int / 10000")) == version


async def test_nobody_else_can_reach_the_server(home: Path) -> None:
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "show listen_addresses") == ""
        for private in (home / "data", home / "run"):
            assert private.stat().st_mode & 0o077 == 0


def test_git_does_not_see_a_home_that_was_created(cold: Path, wrap_program: WrapProgram) -> None:
    wrap_program("initdb", "exit 1")
    with pytest.raises(ConfigurationError):
        Embedded(cold).acquire()
    assert (cold / ".gitignore").read_text() == "*\n"


async def test_settings_are_passed_on(home: Path) -> None:
    options = {"work_mem": "12MB", "port": "1", "application_name": 'it\'s "quoted" $(here)'}
    with Embedded(home, durable=False, options=options) as dsn:
        assert await ask(dsn, "show work_mem") == "12MB"
        assert await ask(dsn, "show application_name") == 'it\'s "quoted" $(here)'
        assert await ask(dsn, "show fsync") == "off"


def test_the_home_is_the_argument_or_the_environment_or_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_HOME", "/from/environment")
    assert Embedded("given").home == tmp_path / "given"
    assert Embedded().home == Path("/from/environment")
    monkeypatch.delenv("HOLDFAST_HOME")
    assert Embedded().home == tmp_path / ".holdfast"


async def test_nothing_of_the_environment_moves_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGHOST": "elsewhere",
        "PGUSER": "nobody",
    }.items():
        monkeypatch.setenv(name, value)
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "select 1") == 1


@pytest.mark.parametrize("name", ["a" * 90, "with space", "comma,colon:'quote'", "ümläut"])
def test_a_path_that_no_socket_can_have(place: Path, template: Path, name: str) -> None:
    copy_home(template, place / name)
    with Embedded(place / name, durable=False) as dsn:
        assert asyncio.run(ask(dsn, "select 1")) == 1


async def test_the_last_one_out_stops_it(home: Path, start_user: StartUser) -> None:
    with Embedded(home, durable=False) as dsn:
        other = start_user(home)
        assert other.dsn() == dsn
        server = postmaster(home)
    assert postmaster(home) == server
    assert await ask(dsn, "select 1") == 1
    other.leave()
    assert not postmaster(home)


def test_one_object_may_be_used_many_times_at_once(home: Path) -> None:
    embedded = Embedded(home, durable=False)
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: embedded.acquire(), range(8)))) == 1
        server = postmaster(home)
        list(threads.map(lambda _: embedded.release(), range(7)))
        assert postmaster(home) == server
    embedded.release()
    assert not postmaster(home)


async def test_processes_that_start_at_once_share_one_server(cold: Path, start_user: StartUser) -> None:
    users = [start_user(cold) for _ in range(6)]
    dsns = await asyncio.gather(*(asyncio.to_thread(user.dsn) for user in users))
    assert len({*dsns}) == 1
    server = postmaster(cold)
    assert server
    for user in users:
        assert postmaster(cold) == server
        user.leave()
    assert not postmaster(cold)
    assert not drafts_of(cold)


async def test_a_server_left_by_a_killed_user_is_adopted(home: Path, start_user: StartUser) -> None:
    user = start_user(home)
    user.dsn()
    server = postmaster(home)
    user.kill()
    assert postmaster(home) == server
    with Embedded(home) as dsn:
        assert postmaster(home) == server
        assert await ask(dsn, "select 1") == 1
    assert not postmaster(home)


async def test_a_killed_server_comes_back(home: Path) -> None:
    first = Embedded(home, durable=False)
    await execute(first.acquire(), "create table kept as select 42 as answer")
    kill_server(home)
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "select answer from kept") == 42
    first.release()
    assert not postmaster(home)


async def test_a_server_that_died_with_everybody_comes_back(home: Path, start_user: StartUser) -> None:
    user = start_user(home)
    await execute(user.dsn(), "create table kept as select 42 as answer")
    kill_server(home)
    user.kill()
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "select answer from kept") == 42


def test_the_number_of_a_dead_server_may_be_a_strangers(home: Path) -> None:
    Embedded(home, durable=False).acquire()
    lock_files = [home / "data" / "postmaster.pid", home / "run" / ".s.PGSQL.5432.lock"]
    texts = [path.read_text() for path in lock_files]
    kill_server(home)
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for path, text in zip(lock_files, texts, strict=True):
            path.write_text("\n".join([str(stranger.pid), *text.split("\n")[1:]]))
        with Embedded(home, durable=False) as dsn:
            assert asyncio.run(ask(dsn, "select 1")) == 1
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("state", ["alive", "killed", "number of a stranger"])
def test_without_proc_as_on_macos(home: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(cluster, "_PROCESSES", Path("/no/proc"))
    first = Embedded(home, durable=False)
    dsn = first.acquire()
    lock_file = home / "data" / "postmaster.pid"
    text = lock_file.read_text()
    if state != "alive":
        kill_server(home)
    if state == "number of a stranger":
        lock_file.write_text("\n".join([str(os.getpid()), *text.split("\n")[1:]]))
    with Embedded(home, durable=False) as again:
        assert again == dsn
        assert asyncio.run(ask(again, "select 1")) == 1
    first.release()
    assert not postmaster(home)


def test_initdb_killed_half_way_leaves_nothing(cold: Path, wrap_program: WrapProgram) -> None:
    wrap_program("initdb", 'echo 18 > "$2/PG_VERSION"; kill -9 $$')
    with pytest.raises(ConfigurationError, match="cannot create its data"):
        Embedded(cold, durable=False).acquire()
    assert not (cold / "data").exists()
    with Embedded(cold, durable=False):
        assert postmaster(cold)
    assert not drafts_of(cold)


def test_a_user_killed_during_initdb(cold: Path, start_user: StartUser, wrap_program: WrapProgram) -> None:
    hold = kill_user_in(wrap_program, "initdb", cold, start_user)
    hold.unlink()
    with Embedded(cold, durable=False):
        assert postmaster(cold)
    assert not postmaster(cold)


async def test_a_user_killed_while_the_server_starts(
    home: Path, start_user: StartUser, wrap_program: WrapProgram
) -> None:
    """The server comes up with nobody to wait for it; who is next must neither fail nor start another."""
    hold = kill_user_in(wrap_program, "pg_ctl", home, start_user)
    hold.unlink()
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "select 1") == 1
    assert not postmaster(home)


def kill_user_in(wrap_program: WrapProgram, program: str, home: Path, start_user: StartUser) -> Path:
    """Kills a user while `program` runs for it, which goes on once the file is removed that this returns."""
    hold = home.parent / "hold"
    hold.touch()
    wrap_program(program, f"while [ -e {hold} ]; do sleep 0.01; done")
    user = start_user(home)
    wait_for((home.parent / "used").exists)
    user.kill()
    return hold


async def test_a_session_of_a_killed_server_may_take_its_time(home: Path) -> None:
    """It holds the shared memory of its server, and as long as it does, the next one refuses to start."""
    dsn = Embedded(home, durable=False).acquire()
    connection = await asyncpg.connect(dsn)
    backend = connection.get_server_pid()
    os.kill(backend, signal.SIGSTOP)
    kill_server(home)
    starting = asyncio.create_task(asyncio.to_thread(Embedded(home, durable=False).acquire))
    await asyncio.to_thread(wait_for, lambda: "pre-existing shared memory" in log_of(home))
    os.kill(backend, signal.SIGCONT)
    assert await ask(await starting, "select 1") == 1
    connection.terminate()


async def test_data_of_another_version_is_named_and_left_alone(home: Path) -> None:
    version = home / "data" / "PG_VERSION"
    mine = version.read_text()
    version.write_text("14\n")
    with pytest.raises(ConfigurationError, match=r"created by PostgreSQL 14, but here is only .*1\d"):
        Embedded(home).acquire()
    version.write_text(mine)
    with Embedded(home, durable=False) as dsn:
        assert await ask(dsn, "select 1") == 1


def test_a_server_whose_lock_file_was_removed_is_left_to_itself(home: Path) -> None:
    with Embedded(home, durable=False):
        server = postmaster(home)
        (home / "data" / "postmaster.pid").unlink()
    os.kill(server, signal.SIGINT)


def test_data_that_is_none(cold: Path) -> None:
    (cold / "data").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="not a data directory"):
        Embedded(cold).acquire()


def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"does not start in .*FATAL:  .*no_such_setting"):
        Embedded(home, options={"no_such_setting": "1"}).acquire()
    assert not postmaster(home)
    with Embedded(home, durable=False):
        assert postmaster(home)


async def test_no_data_gets_into_the_log(home: Path) -> None:
    with Embedded(home, durable=False) as dsn:
        await execute(dsn, "create table t (secret text primary key)")
        await execute(dsn, "insert into t values ('s3cret')")
        with pytest.raises(asyncpg.UniqueViolationError):
            await execute(dsn, "insert into t values ('s3cret')")
        with pytest.raises(asyncpg.PostgresError):
            await execute(dsn, "select 's3cret'::int")
        connection = await asyncpg.connect(dsn)
        query = asyncio.ensure_future(connection.fetchval("select pg_sleep(60), 's3cret'"))
        await asyncio.sleep(0)
        os.kill(connection.get_server_pid(), signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await query
        connection.terminate()
    assert not postmaster(home), "it was told to stop in the middle of its restart"
    assert "terminated by signal 9" in log_of(home)
    assert "s3cret" not in log_of(home)


def test_a_folder_that_cannot_be_used(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(ConfigurationError, match="HOLDFAST_HOME"):
        Embedded(place / "file" / "home").acquire()


def test_a_home_removed_under_the_server(home: Path, start_user: StartUser, template: Path) -> None:
    """Its user must not stop the server of the home that took its place."""
    first = Embedded(home, durable=False)
    first.acquire()
    server = postmaster(home)
    shutil.rmtree(home)
    os.kill(server, signal.SIGKILL)
    copy_home(template, home)
    with Embedded(home, durable=False):
        first.release()
        assert postmaster(home)


def test_leaving_when_the_home_is_gone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedded = Embedded(home, durable=False)
    embedded.acquire()
    server = postmaster(home)
    shutil.rmtree(home)
    os.kill(server, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "holdfast"):
        embedded.release()
    assert not caplog.records
    assert not home.exists()

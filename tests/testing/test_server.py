"""Which server a run of tests gets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import asyncpg
import pytest

from holdfast.errors import ConfigurationError
from holdfast.testing import postgres
from holdfast.testing.postgres import Server, docker_answers, serve


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLDFAST_TEST_SERVER", "HOLDFAST_TEST_DATABASE_URL", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def on_offer(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Docker and the embedded server as names only; what is taken out of the set cannot be had."""
    offer = {"docker", "embedded"}

    @contextlib.contextmanager
    def docker() -> Iterator[Server]:
        if "docker" not in offer:
            raise OSError("no such image")
        yield Server("docker", "docker")

    @contextlib.contextmanager
    def embedded() -> Iterator[Server]:
        yield Server("embedded", "embedded")

    monkeypatch.setattr(postgres, "_in_docker", docker)
    monkeypatch.setattr(postgres, "_embedded", embedded)
    monkeypatch.setattr(postgres, "docker_answers", lambda: True)
    return offer


def chosen() -> str:
    with serve() as server:
        return server.kind


@pytest.mark.usefixtures("on_offer")
def test_a_url_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_TEST_DATABASE_URL", "postgresql+asyncpg://me:pass@there/mine")
    with serve() as server:
        assert server == Server("url", "postgresql://me:pass@there/mine")


@pytest.mark.usefixtures("on_offer")
def test_docker_comes_second_and_embedded_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen() == "docker"
    monkeypatch.setattr(postgres, "docker_answers", lambda: False)
    assert chosen() == "embedded"


def test_without_a_choice_a_container_that_does_not_start_is_passed_over(
    on_offer: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    on_offer.remove("docker")
    assert chosen() == "embedded"
    assert "no such image" in caplog.text


@pytest.mark.parametrize("choice", ["docker", "embedded"])
@pytest.mark.usefixtures("on_offer")
def test_a_choice_counts_more_than_a_url(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv("HOLDFAST_TEST_DATABASE_URL", "postgresql://there")
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", choice)
    assert chosen() == choice


def test_a_choice_is_never_replaced(monkeypatch: pytest.MonkeyPatch, on_offer: set[str]) -> None:
    on_offer.remove("docker")
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", "docker")
    with pytest.raises(OSError, match="no such image"):
        chosen()
    monkeypatch.setattr(postgres, "docker_answers", lambda: False)
    with pytest.raises(ConfigurationError, match="Docker engine"):
        chosen()
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", "url")
    with pytest.raises(ConfigurationError, match="HOLDFAST_TEST_DATABASE_URL"):
        chosen()
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", "podman")
    with pytest.raises(ConfigurationError, match="url, docker or embedded"):
        chosen()


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Server("url", "postgresql://me:secret@there"))


def test_no_docker_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    assert not docker_answers()


@pytest.fixture
def docker() -> None:
    if not docker_answers():
        pytest.skip("no Docker engine answers")


@pytest.mark.usefixtures("docker")
async def test_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", "docker")
    with serve() as server:
        assert server.kind == "docker"
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("show fsync") == "off"
        assert connection.get_server_version().major >= 15
        await connection.close()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncpg.connect(server.dsn, timeout=5)


@pytest.mark.usefixtures("docker")
def test_the_workers_of_a_run_share_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_TEST_SERVER", "docker")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "of-this-test")
    with contextlib.ExitStack() as other:
        first = contextlib.ExitStack()
        server = first.enter_context(serve())
        assert other.enter_context(serve()).dsn == server.dsn
        leaving = threading.Thread(target=first.close)
        leaving.start()
        leaving.join(0.2)
        assert leaving.is_alive(), "the one who started it waits for the others"
    leaving.join(60)
    assert not leaving.is_alive()
    assert not postgres._folder("docker-of-this-test").exists()

"""Settings are checked when they are made, and keep their secrets."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from holdfast.config import Settings, check_schema_name, resolve_dsn
from holdfast.errors import ConfigurationError
from holdfast.types import PayloadContext


class Rot13:
    def __init__(self) -> None:
        self.secret = "hunter2"

    def __repr__(self) -> str:
        return f"Rot13({self.secret})"

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        return data

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        return data


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert (settings.lease, settings.heartbeat, settings.cleanup_time, settings.drain) == (10, 1, 10, 0)
    assert (settings.database_patience, settings.max_payload) == (60, 1024 * 1024)
    assert (settings.pool_size, settings.batch_records, settings.backlog) == (4, 1000, 20_000)
    assert settings.codec is None
    assert settings.hmac_keys is None


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().lease = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"lease": 0}, "lease must be a number of seconds, more than 0"),
        ({"lease": -1}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"lease": float("inf")}, "lease"),
        ({"lease": "10"}, "lease"),
        ({"lease": True}, "lease"),
        ({"heartbeat": 10}, "heartbeat .* less than lease"),
        ({"drain": -1}, "drain must be a number of seconds, 0 or more"),
        ({"cleanup_time": None}, "cleanup_time"),
        ({"database_patience": 0}, "database_patience"),
        ({"pool_size": 0}, "pool_size must be a whole number, 1 or more"),
        ({"pool_size": 1.5}, "pool_size"),
        ({"batch_records": True}, "batch_records"),
        ({"backlog": 0}, "backlog"),
        ({"codec": object()}, "codec must have the methods"),
        ({"hmac_keys": []}, "hmac_keys"),
        ({"hmac_keys": b"a string is no list of keys"}, "hmac_keys"),
        ({"hmac_keys": [b"short"]}, "at least 16"),
    ],
)
def test_a_value_out_of_range_is_refused_at_once(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Settings(**changed)


def test_k2_no_setting_lifts_the_hard_limit() -> None:
    assert Settings(max_payload=16 * 1024 * 1024).max_payload == 16_777_216
    with pytest.raises(ConfigurationError, match="16 MiB"):
        Settings(max_payload=16 * 1024 * 1024 + 1)


def test_k4_the_repr_shows_no_secret() -> None:
    shown = repr(Settings(codec=Rot13(), hmac_keys=[b"0123456789abcdef"]))
    assert "hunter2" not in shown
    assert "0123456789abcdef" not in shown
    assert "codec=<set>" in shown
    assert "lease=10.0" in shown


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("HOLDFAST_DATABASE_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return monkeypatch


def test_a_dsn_comes_from_the_argument_then_the_variables(no_variables: pytest.MonkeyPatch) -> None:
    assert resolve_dsn(None) is None
    no_variables.setenv("DATABASE_URL", "postgres://c/d")
    assert resolve_dsn(None) == "postgres://c/d"
    no_variables.setenv("HOLDFAST_DATABASE_URL", "")
    assert resolve_dsn(None) == "postgres://c/d"
    no_variables.setenv("HOLDFAST_DATABASE_URL", "postgresql+asyncpg://b/d")
    assert resolve_dsn(None) == "postgresql://b/d"
    assert resolve_dsn("postgresql+asyncpg://u:p%40@a:5432/d?sslmode=require") == (
        "postgresql://u:p%40@a:5432/d?sslmode=require"
    )


@pytest.mark.parametrize("dsn", ["", "mysql://u:hunter2@h/d", "host=h password=hunter2", "hunter2"])
def test_k4_a_dsn_that_is_refused_is_not_shown(no_variables: pytest.MonkeyPatch, dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a URL that begins with postgresql://") as caught:
        resolve_dsn(dsn)
    assert "hunter2" not in str(caught.value)
    if dsn:
        no_variables.setenv("DATABASE_URL", dsn)
        with pytest.raises(ConfigurationError, match=r"^DATABASE_URL must be"):
            resolve_dsn(None)


@pytest.mark.parametrize("name", ["holdfast", "_", "a1", "x" * 63])
def test_a_schema_name_that_needs_no_quoting(name: str) -> None:
    assert check_schema_name(name) == name


@pytest.mark.parametrize("name", ["", "Holdfast", "1a", "a-b", "a b", 'a"', "x" * 64, "a\n", "ü", None])
def test_any_other_schema_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema must be"):
        check_schema_name(name)

"""The rules of the house that neither ruff nor import-linter can hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import holdfast
from holdfast._sql import statements

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "holdfast").rglob("*.py"))
SQL = sorted((ROOT / "sql").rglob("*.sql"))

SQL_TEXT = re.compile(
    r"\s*(select\s|insert\s+into\s|update\s+\S+\s+set\s|delete\s+from\s|with\s+\S+\s+as\s*\(|create\s+(table|function))",
    re.IGNORECASE,
)
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _strings(path: Path) -> list[str]:
    """Every string of a module that is not a docstring; of an f-string the constant parts."""
    tree = ast.parse(path.read_text("utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
    ]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_module_says_what_it_is_for_and_can_be_read_at_a_sitting(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), "the first lines say what the room is for"
    assert len(text.splitlines()) <= 500, "a module this long holds two nouns"


def test_no_module_has_a_vague_name() -> None:
    assert [name for name in map(_name, SOURCES) if set(re.split(r"[/.]", name)) & VAGUE] == []


def test_statements_live_in_sql_files() -> None:
    # `testing` makes databases and looks into catalogues, which is no part of the schema.
    sources = [path for path in SOURCES if "testing" not in path.parts]
    assert {_name(path) for path in sources for text in _strings(path) if SQL_TEXT.match(text)} == set()


def test_every_statement_promises_something_and_is_used() -> None:
    loaded = statements.load()
    assert [name for name in loaded if not loaded.promise(name)] == []
    used = {text for path in SOURCES for text in _strings(path)}
    assert sorted(set(loaded) - used) == []


def test_every_statement_that_is_used_exists() -> None:
    files = "|".join(path.stem for path in (ROOT / "sql" / "queries").glob("*.sql"))
    key = re.compile(rf"({files})\.[a-z][a-z0-9_]*")
    asked = {text for path in SOURCES for text in _strings(path) if key.fullmatch(text)}
    assert sorted(asked - set(statements.load())) == []


@pytest.mark.parametrize("path", SQL, ids=_name)
def test_every_identifier_can_be_moved_to_another_schema(path: Path) -> None:
    code = re.sub(r"--[^\n]*", "", statements.qualify(path.read_text("utf-8"), "elsewhere"))
    left = [line.strip() for line in code.splitlines() if re.search(r"(?<!')\bholdfast\b", line)]
    assert left == []


def test_every_function_fixes_its_search_path() -> None:
    text = "\n".join(sql for _, sql in statements.functions())
    parts = re.split(r"(?m)^create or replace function ", text)[1:]
    # `now` has none so that it can be inlined; it qualifies what it calls.
    loose = [part.split("(")[0] for part in parts if "set search_path = pg_catalog" not in part]
    assert loose == ["holdfast.now"]


def test_the_shop_window_is_complete() -> None:
    window: list[str] = vars(holdfast)["__all__"]
    assert [name for name in window if not hasattr(holdfast, name)] == []
    assert len(set(window)) == len(window)

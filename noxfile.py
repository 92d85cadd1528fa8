"""What can be run, as a menu: `nox --list`. The gate is `.ci/run`."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "imports", "types", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Formatted, and nothing that ruff complains of."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def imports(session: nox.Session) -> None:
    """Floors: imports go down only, and nothing goes round."""
    session.install("-e", ".[dev]")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types hold inside (mypy strict) and are complete outside (pyright on the public API)."""
    session.install("-e", ".[dev]")
    session.run("mypy", "src", "tests")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "holdfast")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The test suite; arguments after `--` go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example, run as its reader would."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/examples", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, one question per file; name files after `--` to run only those."""
    session.install("-e", ".[test]")
    for file in session.posargs or sorted(map(str, Path("benchmarks").glob("[!_]*.py"))):
        session.run("python", file)

"""`holdfast migrate`: the tables of this version."""

import argparse
import sys

from holdfast._sql.migrate import script
from holdfast.cli.exits import Exit
from holdfast.cli.screen import Screen
from holdfast.cli.session import connected
from holdfast.config import check_schema_name


async def migrate(given: argparse.Namespace, screen: Screen) -> int:
    """Migrates, or prints the script, or only checks.

    Raises:
        SchemaError: if the check fails, or a newer version of the library has been here.
    """
    name = check_schema_name(given.schema)
    if given.sql:
        sys.stdout.write(script(name))
        return Exit.OK
    async with connected(given, migrate=not given.check):
        screen.talk(f"schema {name} is up to date")
    if screen.json:
        screen.data({"schema": name, "up_to_date": True})
    return Exit.OK

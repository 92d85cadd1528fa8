"""`holdfast demo`: a checkout, for real. Several processes, one PostgreSQL, one kill -9.

`shop` is the workflow and the process that runs it, `bank` the process that pays; `cast` starts and ends such
processes, `place` finds the database, `report` prints, `story` is what happens, in its order.
"""

from holdfast.cli.demo.story import run

__all__ = ["run"]

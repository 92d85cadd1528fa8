"""Changes of code under workflows that already run: which side of a change this execution is on."""

from collections.abc import Coroutine
from typing import Any

from holdfast import _keys
from holdfast._observe import point
from holdfast._run.context import current_branch
from holdfast._run.operation import Wait
from holdfast._run.run import Run
from holdfast._store.commits import Journaled

KIND = "patched"


def patched(name: str) -> Wait[bool]:
    """Is this execution to go the new way of a change called `name`? Guards a change of code for workflows
    that already run: False for one whose journal says that it came here before the change, True else.

    The first answer is the answer, for this name and this execution, in loops and branches too. Awaiting it
    takes no step id, so that journals made before the change still match; and it may be taken out of the
    code again, with the old way, once nothing started before the change is left.

    Raises:
        InvalidName: if the name cannot be one [K1].
        NotInWorkflow: outside a workflow, or inside a step.

    Example:
        >>> async def total(price: int) -> int:
        ...     if await patched("with-tax"):
        ...         return price + price // 5
        ...     return price
    """
    _keys.check_name(name, "name of a change")
    run = current_branch("patched", "elsewhere, there is no journal to match").run

    def begin() -> Coroutine[Any, Any, bool]:
        return _decide(run, name)

    return Wait(begin)


async def _decide(run: Run, name: str) -> bool:
    """Never suspends, live as in a replay: so it changes nothing in the order in which branches go on."""
    run.check()
    if run.patches is None:
        run.patches = {}
    decided = run.patches.get(name)
    if decided is None:
        decided = run.patches[name] = _is_new_here(run, name)
    return decided


def _is_new_here(run: Run, name: str) -> bool:
    """Recorded, or nothing is left to replay: then recorded, ahead of all that the new way will record."""
    step_id = f"{run.prefix}#{name}"
    if step_id in run.journal:
        return True
    if run.turns.unreplayed is not None or run.unmade:
        return False
    point("patched.before_commit")
    run.post(Journaled(owner=run.owner, step_id=step_id, kind=KIND, name=name))
    return True

"""Managing workflows: what a client does with those that it does not just start and talk to."""

from datetime import timedelta
from typing import Any

from holdfast._api.looking import Looking
from holdfast._primitives import managing
from holdfast._primitives.channels import name_and_type
from holdfast._primitives.handles import Handle
from holdfast._primitives.streams import Stream
from holdfast._primitives.trimming import check_before, trim
from holdfast.config import seconds_of


class Control(Looking):
    """The managing half of a client; everything works on any workflow, wherever it runs."""

    async def cancel(self, workflow_id: str) -> bool:
        """Asks a workflow and its children to end [W10]; was it active?

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        return await managing.cancel_workflow(self.engine, workflow_id)

    async def trim_stream(self, workflow_id: str, key: str | Stream[Any], *, before: int) -> int:
        """Forgets the values of a stream before offset `before`; gives the oldest offset that is still kept.
        See `holdfast.trim_stream`.

        Raises:
            WorkflowNotFound: if there is none of this id.
            ValueError: if `before` is negative.
        """
        name, _ = name_and_type(key, "stream name", Any)
        return await trim(self.engine, workflow_id, name, check_before(before))

    async def resume(self, workflow_id: str) -> bool:
        """Lets a workflow that has ended go on from its journal, in whatever process [W12]. False: it was
        active anyway, and nothing has changed.

        A CANCELLED one goes on where it was interrupted: the calls that were interrupted, and those of its
        clean-up, are made again as the code comes to them; what the clean-up has sent or written stays, but
        messages that it took come again and streams that it closed are open again. Children that were
        cancelled with it are resumed with it. One that is still cleaning up is waited for. Its claims count
        from zero [W13], its timeout anew.

        A QUARANTINED one goes on, as does one whose ERROR says nothing of its work but that it could not be
        stored or read: a `PayloadError`, `RecordRejected` or `DatabaseUnavailable`.

        Raises:
            WorkflowNotFound: if there is none of this id.
            WorkflowConflict: if it has ended with a result, or with another error, which its journal would
            give it again: `fork` it.

        Example:
            >>> async def carry_on(client: Control, order: str) -> None:
            ...     await client.resume(order)
        """
        return await managing.resume_workflow(self.engine, workflow_id)

    async def fork(self, workflow_id: str, *, from_step: str, id: str | None = None) -> Handle[Any]:
        """Makes a new workflow with what another had recorded before `from_step` completed, and runs it from
        there, with the code of today [W12].

        It has the same name, input, attributes, queue and timeout, the events and stream values that the
        recorded steps have written (streams numbered without holes), and no messages. Of a step that waits,
        or runs, everything recorded counts as before it. Children that the recorded steps have started stay
        the original's. `id` is the idempotency key: the same fork again gives the same workflow.

        Raises:
            WorkflowNotFound: if there is none of this id.
            LookupError: if its journal has no such step; `steps` lists them.
            WorkflowConflict: if `id` belongs to another workflow.

        Example:
            >>> async def again(client: Control, order: str) -> str:
            ...     handle = await client.fork(order, from_step="3")
            ...     return str(await handle.result())
        """
        made = await managing.fork_workflow(self.engine, workflow_id, from_step, id)
        return Handle(self.engine, made, Any)

    async def delete(self, workflow_id: str) -> None:
        """Removes a workflow that has ended, with its journal, messages, events and streams; its id is free.

        With it go its children that have ended, and theirs, unless they were given an `id=`. Those that stay,
        because they are active or have ids of their own, are nobody's children from then on; as do all of
        them while a fork of it is active, which may ask for them. Its forks stay too.

        Raises:
            WorkflowNotFound: if there is none of this id.
            WorkflowConflict: if it is active: cancel it first.
        """
        await managing.delete_workflow(self.engine, workflow_id)

    async def prune(self, older_than: float | timedelta, *, batch: int = 1000) -> int:
        """Removes workflows that ended more than `older_than` seconds ago by the database's clock, with all
        that belongs to them; gives their number. Of their children, those that ended as long ago go too.
        What is kept of processes that are long gone goes with the last of their workflows.

        Never what is active, nor the children of an active parent, which may still ask for their results.
        Every `batch` rows are a transaction of their own, which waits for nobody's locks; cancelling stops
        between two of them, and the next call goes on.

        Raises:
            ValueError: if `older_than` is negative, or `batch` less than 1.

        Example:
            >>> async def nightly(client: Control) -> None:
            ...     print(await client.prune(timedelta(days=30)), "workflows removed")
        """
        age = seconds_of(older_than)
        if age is None:
            raise TypeError("older_than is a number of seconds or a timedelta")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError("batch is how many rows one transaction removes at most: 1 or more")
        return await managing.prune_workflows(self.engine, age, batch)

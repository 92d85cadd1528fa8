"""What this process can run: definitions of workflows by their stored names."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from holdfast._codec import Parameters
from holdfast.errors import RegistrationError


class Definition:
    """The code of a workflow and the options given where it was defined."""

    __slots__ = ("fn", "max_recoveries", "name", "parameters", "timeout")

    def __init__(
        self,
        fn: Callable[..., Awaitable[Any]],
        name: str,
        parameters: Parameters,
        *,
        timeout: float | None,
        max_recoveries: int,
    ) -> None:
        self.fn: Callable[..., Awaitable[Any]] = fn
        self.name: str = name
        self.parameters: Parameters = parameters
        self.timeout: float | None = timeout
        self.max_recoveries: int = max_recoveries


class Registry:
    """Definitions by name; names are unique."""

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self._by_name: dict[str, Definition] = {}
        for definition in definitions:
            known = self._by_name.setdefault(definition.name, definition)
            if known.fn is not definition.fn:
                raise RegistrationError(
                    f"two workflows are named {definition.name!r}: {_where(known)} and {_where(definition)}; "
                    "give one of them another name with @workflow(name=…)"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def get(self, name: str) -> Definition | None:
        """The definition of this name, or None."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> Definition:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Definition]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)


def _where(definition: Definition) -> str:
    return f"{definition.fn.__module__}.{definition.fn.__qualname__}"

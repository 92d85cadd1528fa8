"""What typed channels have in common: a name, and the type written in the brackets.

A channel is inert: it opens nothing, belongs to no runtime and may be made at import, in any number of
processes.
"""

from typing import Any, Generic, TypeVar, get_args

from holdfast import _keys
from holdfast._codec import check_type

T_co = TypeVar("T_co", covariant=True)


class Channel(Generic[T_co]):
    """A name for values of one type; `Topic`, `Event` and `Stream` are its kinds.

    Events and streams are covariant although values go in too: mypy asks for an `Event[object]` in
    `print(await handle.get(event))`, and what is written to is the constant that a program has named once.
    A topic is not: the type of its messages is what `Handle.send` checks a message against.
    """

    __slots__ = ("__orig_class__", "__weakref__", "name")
    noun = "channel"

    def __init__(self, name: str) -> None:
        self.name: str = _keys.check_name(name, self.noun)

    @property
    def type(self) -> Any:
        """The type of the values: what stands in the brackets, `Any` without them."""
        return self.argument(0)

    def argument(self, place: int) -> Any:
        """What stands at this place in the brackets; `Any` if nothing does."""
        arguments = get_args(getattr(self, "__orig_class__", None))
        return arguments[place] if place < len(arguments) else Any

    def __repr__(self) -> str:
        inside = get_args(getattr(self, "__orig_class__", None))
        while inside and inside[-1] is Any:
            inside = inside[:-1]
        shown = ", ".join(str(getattr(each, "__name__", each)) for each in inside)
        return f"{type(self).__name__}{shown and f'[{shown}]'}({self.name!r})"


def name_and_type(channel: "str | Channel[Any]", noun: str, given: object) -> tuple[str, Any]:
    """The name and the type of values, from a channel or from a name and a type.

    Raises:
        InvalidName: if the name cannot be one [K1].
        ConfigurationError: if values of the type cannot be read back [K2].
    """
    if isinstance(channel, Channel):
        check_type(channel.type)
        name = channel.name
        given = channel.type if given is Any else given
    else:
        name = _keys.check_name(channel, noun)
    if given is not Any:
        check_type(given)
    return name, given

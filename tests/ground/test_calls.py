"""The arguments of a call, stored and read back by the types of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

from holdfast._codec import Codec, Parameters
from holdfast.errors import ConfigurationError, PayloadDecodeError, PayloadNotSerializable
from holdfast.types import PayloadContext

if TYPE_CHECKING:
    from fractions import Fraction

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="input", name="checkout")
CODEC = Codec("holdfast", 1024 * 1024)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Order:
    id: int


async def checkout(
    order: Order, n: int = 1, *rest: Decimal, gift: bool = False, **more: bytes
) -> list[Order]:
    return []


def plain(a, b=2):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return a


def positional_only(a: Order, /, *, key: Order) -> None: ...


def read(data: bytes, fn: Callable[..., Any] = checkout) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return CODEC.decode_call(data, Parameters(fn), CONTEXT)


ONE = Order(1)


@pytest.mark.parametrize(
    ("args", "kwargs", "data"),
    [
        ((ONE,), {}, b'[{"id":1}]'),
        ((ONE, 2, Decimal("1.5")), {}, b'[{"id":1},2,"1.5"]'),
        ((), {"order": ONE}, b'{"order":{"id":1}}'),
        ((), {"order": ONE, "gift": True, "x": b"\xff"}, b'{"order":{"id":1},"gift":true,"x":"/w=="}'),
        ((ONE, 2), {"gift": True}, b'{"*":[{"id":1},2],"gift":true}'),
    ],
)
def test_k2_a_call_comes_back_as_it_was_made(
    args: tuple[Any, ...], kwargs: dict[str, Any], data: bytes
) -> None:
    assert CODEC.encode_call(args, kwargs, CONTEXT) == data
    assert read(data) == (args, kwargs)


def test_k2_a_call_without_arguments_and_one_without_annotations() -> None:
    assert CODEC.encode_call((), {}, CONTEXT) == b"[]"
    assert read(b"[]", lambda: None) == ((), {})
    assert read(b"{}", lambda: None) == ((), {})
    assert read(b'[{"id":1}]', plain) == (({"id": 1},), {})


def test_k2_a_call_from_sql_may_have_space_before_it() -> None:
    assert read(b' [ {"id": 1} ]') == ((ONE,), {})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'[{"id":"hunter2"}]', "argument `order`: Expected `int`, got `str` - at `$.id`"),
        (b'{"order":{"id":1},"n":"hunter2"}', "argument `n`: Expected `int`"),
        (b'[{"id":1},1,"hunter2"]', "argument `rest`: Invalid decimal"),
        (b'{"order":{"id":1},"x":3}', "argument `x`: Expected `bytes`"),
        (b"[]", "checkout(): missing a required argument: 'order'"),
        (b'{"*":[{"id":1}],"order":{"id":1}}', "multiple values for argument 'order'"),
        (b"3", "must be a JSON array or object"),
        (b'{"*":3}', "must be a JSON array or object"),
        (b"[hunter2", "must be a JSON array or object"),
        (b"", "must be a JSON array or object"),
    ],
)
def test_k4_a_stored_call_that_does_not_fit_names_the_parameter_only(data: bytes, complaint: str) -> None:
    with pytest.raises(PayloadDecodeError) as caught:
        read(data)
    assert complaint in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_k2_arguments_that_the_function_no_longer_takes_are_refused() -> None:
    with pytest.raises(PayloadDecodeError, match="too many positional arguments"):
        read(b"[1,2,3]", plain)
    with pytest.raises(PayloadDecodeError, match="unexpected keyword argument 'c'"):
        read(b'{"a":1,"c":3}', plain)
    with pytest.raises(PayloadDecodeError, match=r"positional.only"):
        read(b'{"a":{"id":1},"key":{"id":1}}', positional_only)


def test_k2_positional_only_and_keyword_only_parameters() -> None:
    data = CODEC.encode_call((ONE,), {"key": ONE}, CONTEXT)
    assert read(data, positional_only) == ((ONE,), {"key": ONE})


def test_k2_the_key_of_the_positional_arguments_is_taken() -> None:
    with pytest.raises(PayloadNotSerializable, match=r"cannot be called `\*`"):
        CODEC.encode_call((), {"*": 1}, CONTEXT)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2), {"order": 3}), ((), {"n": 1}), ((), {"gift": True})],
)
def test_a_call_that_would_fail_fails_when_it_is_made(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^checkout\(\): "):
        Parameters(checkout).check(args, kwargs)


def test_a_call_that_would_work_passes() -> None:
    Parameters(checkout).check((1,), {})
    Parameters(checkout).check((1, 2, 3, 4, 5), {"anything": 1})
    Parameters(checkout).check((), {"order": 1})
    Parameters(plain).check((1, 2), {})
    with pytest.raises(TypeError):
        Parameters(plain).check((1, 2, 3), {})
    with pytest.raises(TypeError, match="key"):
        Parameters(positional_only).check((1,), {})


def test_types_of_every_parameter_and_of_the_result() -> None:
    found = Parameters(checkout)
    assert found.types == {"order": Order, "n": int, "rest": Decimal, "gift": bool, "more": bytes}
    assert found.returns == list[Order]
    assert Parameters(plain).types == {"a": Any, "b": Any}
    assert Parameters(plain).returns is Any
    assert found.name == "checkout"


def test_annotations_may_name_what_is_local() -> None:
    @dataclass
    class Local:
        id: int

    def closed(a: Local) -> Local:
        return Local(a.id)

    def annotated_only(a: Local) -> None: ...

    assert Parameters(closed).types == {"a": Local}
    assert Parameters(annotated_only, {"Local": Local}).types == {"a": Local}
    assert read(b'[{"id":1}]', closed) == ((Local(1),), {})


def test_annotations_are_resolved_when_they_are_needed() -> None:
    def early(a: Later) -> None: ...

    found = Parameters(early)
    assert found.types == {"a": Later}


@dataclass
class Later:
    id: int


def test_an_annotation_that_does_not_exist_at_run_time_is_named() -> None:
    def half(a: Fraction) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"half\(\): the annotation of `a` .*'Fraction' is not defined"
    ):
        _ = Parameters(half).types


def test_types_that_cannot_be_stored_are_found_early() -> None:
    def takes(a: object, b: Callable[[], int]) -> int:
        return 1

    def gives() -> complex:
        return 1j

    Parameters(checkout).check_types()
    with pytest.raises(ConfigurationError, match=r"takes\(\), `b`: .*Callable"):
        Parameters(takes).check_types()
    with pytest.raises(ConfigurationError, match=r"gives\(\), `return`: .*complex"):
        Parameters(gives).check_types()


def test_decorated_functions_keep_their_parameters() -> None:
    def logged(fn: Callable[P, R]) -> Callable[P, R]:
        @wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return fn(*args, **kwargs)

        return call

    assert Parameters(logged(positional_only)).types == {"a": Order, "key": Order}


def test_a_bare_param_spec_is_anything() -> None:
    def taking(_fn: Callable[P, object]) -> Callable[P, None]:
        def call(*args: P.args, **kwargs: P.kwargs) -> None: ...

        return call

    assert Parameters(taking(checkout)).types == {"args": Any, "kwargs": Any}

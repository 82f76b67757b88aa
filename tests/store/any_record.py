"""Any record of any kind, for property tests."""

import types as python_types
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from doorstep.types import Grade, Record, TokenSpan

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def records(kind: type[Record]) -> st.SearchStrategy[Record]:
    """Any record of a kind that keeps the invariants."""
    fields = {name: _values(hint) for name, hint in get_type_hints(kind).items()}
    if kind is TokenSpan:
        fields |= {"ids": st.just(b"\1\0\0\0"), "logprobs": st.just(b"\0\0\0\0"), "exact": st.just(True)}
    if kind is Grade:
        fields |= {"why": st.text(min_size=1)}
    return st.builds(kind, **fields)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) in (Union, python_types.UnionType):
        return st.one_of(*(_values(option) for option in get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(list(hint))
    simple = {str: st.text(), int: INTEGERS, float: NUMBERS, bool: st.booleans(), bytes: st.binary(), Any: JSON}
    if hint in simple:
        return simple[hint]
    if hint is type(None):
        return st.none()
    if get_origin(hint) is list:
        return st.lists(_values(get_args(hint)[0]), max_size=3)
    return st.dictionaries(st.text(), _values(get_args(hint)[1]), max_size=3)

"""JSON and event streams as every dialect reads them."""

import json

import msgspec
import pytest
from dialect_tools import collect, cut, pieces
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.dialects import wire

EVENTS = b': a comment\r\n\r\nevent: x\r\ndata: {"a": "\xc3\xbc"}\r\n\r\ndata:1\ndata: 2\n\nid: 7\n\ndata: [DONE]\n\n'


@given(st.lists(st.integers(0, 1000), max_size=20))
async def test_events_are_the_same_however_they_are_cut(places):
    found = await collect(wire.event_data(pieces(cut(EVENTS, places))))
    assert found == [b'{"a": "\xc3\xbc"}', b"1\n2", b"[DONE]"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
async def test_the_last_event_may_lack_its_empty_line(end):
    assert await collect(wire.event_data(pieces([b"data: 1\n\ndata: 2" + end]))) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"a":1,"a":2}', "a"),
        (b'{"a":[{"b":{"c":1,"c":1}}]}', "c"),
        (b'{"a":NaN}', "body"),
        (b'{"a":1e999}', "body"),
        (b'{"a":"\xff"}', "body"),
        (b'{"a":"\\ud800"}', "body"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
        (b"[1]", "body"),
        (b"", "body"),
    ],
)
def test_a_body_that_two_readers_may_read_differently_is_refused(body, where):
    with pytest.raises(BadInput) as caught:
        wire.fields(body)
    assert caught.value.where == where


@given(st.integers(1, 1500))
def test_what_was_deep_enough_to_read_is_written_or_refused(levels):
    body = b'{"a":' * levels + b"1" + b"}" * levels
    try:
        assert json.loads(wire.encode(wire.fields(body))) == json.loads(body)
    except BadInput as error:
        assert (error.where, levels > 300) == ("body", True)  # noqa: PT017


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    b: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    a: Inner


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({}, "x.a"),
        ({"a": {}}, "x.a.b"),
        ({"a": {"b": "1"}}, "x.a.b"),
        ({"a": {"b": 1, "c": 1}}, "x.a.c"),
        (3, "x"),
    ],
)
def test_an_error_names_the_path(value, where):
    with pytest.raises(BadInput) as caught:
        wire.convert(value, Outer, "x")
    assert caught.value.where == where

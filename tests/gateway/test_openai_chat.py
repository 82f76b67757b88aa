"""The dialect on its own: bytes in, types out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.dialects import openai_chat

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES), st.text())
def test_another_model_changes_nothing_else(fields, model):
    body = json.dumps(fields | {"model": "openai/x"}, indent=1).encode()
    assert json.loads(openai_chat.with_model(body, model)) == fields | {"model": model}


def test_values_keep_their_spelling():
    assert b"1.50e+01" in openai_chat.with_model(b'{"model":"a","odd":1.50e+01}', "b")


@given(st.integers(0, 400))
def test_a_stream_that_was_cut_is_read_as_far_as_it_goes(cut):
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "grüß "}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "dich"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    ]
    stream = b"".join(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks)
    reading = openai_chat.understand(stream[:cut])
    assert "".join(reading.texts) in ("", "grüß ", "grüß dich")
    assert openai_chat.understand(stream).texts == ["grüß dich"]
    assert (openai_chat.understand(stream).finish_reason, openai_chat.understand(stream).output_tokens) == ("stop", 2)


@pytest.mark.parametrize("answer", [b"", b"<html>", b'{"choices": 3}', b"data: {", b"\xff{"])
def test_an_answer_of_another_kind_stays_unknown(answer):
    reading = openai_chat.understand(answer)
    assert (reading.texts, reading.finish_reason, reading.output_tokens) == ([], None, None)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"model": 1}', "model"),
        (b"{}", "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b"nonsense", "body"),
    ],
)
def test_a_bad_head_names_its_field(body, where):
    with pytest.raises(BadInput) as caught:
        openai_chat.head(body)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (502, "server_error")]
)
def test_errors_have_the_shape_of_openai(status, kind):
    error = json.loads(openai_chat.error(status, "why", param="n", code="c"))
    assert error == {"error": {"message": "why", "type": kind, "param": "n", "code": "c"}}

"""The same faults in every dialect of chat, by the fake provider."""

import httpx
import pytest
from served import HELLO

CHATS = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "hello there, what is new"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 100},
}


@pytest.fixture(params=CHATS)
def chat(address, request):
    """Have a chat in one dialect; return the answer, and whether it came to its end in order."""

    def chatted(model, *, stream=True):
        body = CHATS[request.param] | {"model": f"fake/{model}", "stream": stream}
        with httpx.stream("POST", address + request.param, json=body, timeout=30, trust_env=False) as answer:
            pieces = []
            try:
                pieces.extend(answer.iter_raw())
            except httpx.RemoteProtocolError:
                return answer, b"".join(pieces), False
            return answer, b"".join(pieces), True

    return chatted


def test_a_stream_that_goes_well_comes_to_its_end(chat):
    answer, body, ended = chat("echo")
    assert (answer.status_code, ended) == (200, True)
    assert b"hell" in body


@pytest.mark.parametrize("model", ["broken", "malformed"])
def test_a_stream_that_goes_wrong_has_no_clean_end(chat, recorded, model):
    answer, _, ended = chat(model)
    assert (answer.status_code, ended) == (200, False)
    assert recorded().error


def test_an_error_event_passes(chat, recorded):
    answer, body, _ = chat("error-after-200")
    assert answer.status_code == 200
    assert b"as told" in body
    assert "as told" in recorded().error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "status"), [("busy", 429), ("empty", 502), ("flaky", 200)])
def test_what_fails_before_the_first_byte_is_tried_again_and_then_told(chat, model, status, stream):
    answer, body, ended = chat(model, stream=stream)
    assert (answer.status_code, ended) == (status, True)
    assert status == 200 or b'"message":' in body
    assert answer.headers.get("retry-after") == ("1" if status == 429 else None)

"""A service over HTTP as a provider: what is sent to it, and what comes back, over real sockets."""

import pytest
from raw_upstream import LAST_CHUNK, chunk, chunked, upstream_that, whole

from doorstep.config import KNOWN_PROVIDERS, ProviderSettings, load
from doorstep.errors import BadInput, ProviderError, UsageError
from doorstep.gateway.dialects import table
from doorstep.gateway.providers.base import Ask, Key
from doorstep.gateway.providers.http import HttpProvider
from doorstep.http_client import Client

KEYS = {"ONE": "sk-one\n", "TWO": "sk-two"}
CHAT = b'{"odd": {"a":1.50, "b":[ ]}, "model":"p/m", "messages":[{"role":"user", "content":"h"}]}'
JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"


@pytest.fixture
async def client():
    async with Client() as made:
        yield made


def an_ask(path="/v1/chat/completions", body=CHAT, model="m", **changes):
    dialect = table.by_path(path)
    head = dialect.head(body)
    return Ask(dialect=dialect, head=head, body=body, call_id="call_1", model=model, **changes)


def streaming():
    return an_ask(body=CHAT[:-1] + b', "stream": true}')


async def says_hello(caller):
    caller.send(whole(b'{"hello": 1}', JSON))


async def sent(client, ask, *, version="v1", **settings):
    """Return the request line, the headers and the body that an upstream gets."""
    async with upstream_that(says_hello) as upstream:
        settings = ProviderSettings(base_url=f"{upstream.url}/{version}", **settings)
        await HttpProvider("p", settings, client, KEYS).answer(ask)
        head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        return line.removesuffix(" HTTP/1.1"), dict(each.split(": ", 1) for each in lines), body


async def answered(client, say, ask=None, **settings):
    """Return an upstream's answer, read to its end."""
    async with upstream_that(say) as upstream:
        settings = ProviderSettings(base_url=upstream.url, **settings)
        answer = await HttpProvider("p", settings, client, KEYS).answer(ask or an_ask())
        pieces = []
        while not isinstance(answer.body, bytes) and (piece := await answer.body.next()):
            pieces.append(piece)
        return answer, b"".join(pieces)


async def test_only_the_model_is_rewritten(client):
    line, headers, body = await sent(client, an_ask(), key_env="ONE")
    assert line == "POST /v1/chat/completions"
    assert (headers["authorization"], headers["content-type"]) == ("Bearer sk-one", "application/json")
    assert headers["accept-encoding"] == "identity"
    assert b'{"a":1.50, "b":[ ]}' in body
    assert b'[{"role":"user", "content":"h"}]' in body
    assert b'"m"' in body
    assert b"p/m" not in body


async def test_a_model_that_is_there_twice_is_sent_once(client):
    _, _, body = await sent(client, an_ask(body=b'{"model":"other",' + CHAT[1:], model="p/m"))
    assert body.count(b'"model"') == 1
    assert b'"p/m"' in body


MESSAGES = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"h"}]}'
SPEECH = b'{"utterances":[{"text":"h"}]}'
GEMINI = "/v1beta/models/p/g:streamGenerateContent"


@pytest.mark.parametrize(
    ("kind", "version", "path", "body", "line", "header"),
    [
        ("anthropic", "v1", "/v1/messages", MESSAGES, "/v1/messages", "x-api-key"),
        ("anthropic", "v1", "/v1/messages/count_tokens", MESSAGES, "/v1/messages/count_tokens", "x-api-key"),
        ("google", "v1beta", GEMINI, b'{"contents":[]}', "/v1beta/models/m:streamGenerateContent", "x-goog-api-key"),
        ("google", "v1beta", "/v1/chat/completions", CHAT, "/v1beta/openai/chat/completions", "authorization"),
        ("hume", "v0", "/v0/tts/stream/json", SPEECH, "/v0/tts/stream/json", "x-hume-api-key"),
        ("openai", "v1", "/v1/responses", b'{"model":"m","input":"h"}', "/v1/responses", "authorization"),
    ],
)
async def test_each_kind_has_its_paths_and_its_header_for_the_key(client, kind, version, path, body, line, header):
    found, headers, _ = await sent(client, an_ask(path, body), version=version, kind=kind, key_env="ONE")
    assert found == f"POST {line}"
    assert headers[header].removeprefix("Bearer ") == "sk-one"


async def test_headers_that_matter_pass_to_their_own_dialect(client):
    given = {
        b"user-agent": b"sdk", b"idempotency-key": b"i", b"openai-beta": b"o", b"anthropic-beta": b"a",
        b"authorization": b"Bearer of-doorstep", b"x-api-key": b"of-doorstep", b"cookie": b"c", b"host": b"h",
    }  # fmt: skip
    _, chat, _ = await sent(client, an_ask(headers=given))
    _, messages, _ = await sent(client, an_ask("/v1/messages", MESSAGES, headers=given), kind="anthropic")
    ours = {"host", "content-length", "content-type", "accept-encoding", "user-agent", "idempotency-key"}
    assert chat.keys() - ours == {"openai-beta"}
    assert messages.keys() - ours == {"anthropic-beta", "anthropic-version"}


async def test_the_clients_version_of_anthropics_api_is_kept(client):
    ask = an_ask("/v1/messages", MESSAGES, headers={b"anthropic-version": b"2042-01-01"})
    _, headers, _ = await sent(client, ask, kind="anthropic")
    assert headers["anthropic-version"] == "2042-01-01"


async def test_a_form_keeps_its_content_type(client):
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\np/m\r\n--b--\r\n'
    ask = an_ask("/v1/audio/transcriptions", form, headers={b"content-type": b"multipart/form-data; boundary=b"})
    _, headers, body = await sent(client, ask)
    assert headers["content-type"] == "multipart/form-data; boundary=b"
    assert body == form.replace(b"p/m", b"m")


async def test_the_key_of_a_call_is_used(client):
    _, headers, _ = await sent(client, an_ask(key=Key("TWO", "sk-two")), key_env=["ONE", "TWO"])
    assert headers["authorization"] == "Bearer sk-two"


async def test_keys_are_those_that_are_there(client):
    settings = ProviderSettings(base_url="http://x", key_env=["ONE", "MISSING", "TWO"])
    provider = HttpProvider("p", settings, client, KEYS)
    assert [(key.label, key.secret) for key in provider.keys] == [("ONE", "sk-one"), ("TWO", "sk-two")]


async def test_a_key_that_cannot_be_one_is_named(client):
    with pytest.raises(UsageError, match="BAD holds characters"):
        HttpProvider("p", ProviderSettings(base_url="http://x", key_env="BAD"), client, {"BAD": "sk\nx"})


async def test_headers_that_matter_come_back(client):
    async def say(caller):
        caller.send(whole(b"{}", JSON, "X-Request-Id: r1", "Retry-After: 7", "x-ratelimit-limit: 9", "Set-Cookie: a=b"))

    answer, _ = await answered(client, say)
    assert answer.headers == {"x-request-id": "r1", "retry-after": "7", "x-ratelimit-limit": "9"}
    assert answer.upstream_id == "r1"


async def test_a_whole_answer_is_bytes_however_it_was_sent(client):
    async def say(caller):
        caller.send(chunked(JSON), chunk(b'{"a":'), chunk(b"1}"), LAST_CHUNK)

    answer, _ = await answered(client, say)
    assert (answer.status, answer.content_type, answer.body) == (200, "application/json", b'{"a":1}')


async def test_a_stream_comes_in_pieces(client):
    async def say(caller):
        caller.send(chunked(EVENTS), chunk(b"data: 1\n\n"), chunk(b"data: [DONE]\n\n"), LAST_CHUNK)

    answer, body = await answered(client, say, streaming())
    assert (answer.content_type, body) == ("text/event-stream", b"data: 1\n\ndata: [DONE]\n\n")


async def test_sound_that_takes_its_time_comes_in_pieces(client):
    async def say(caller):
        caller.send(chunked("Content-Type: audio/mpeg"), chunk(b"some"))
        await caller.silence()

    async with upstream_that(say) as upstream:
        provider = HttpProvider("p", ProviderSettings(base_url=upstream.url), client, KEYS)
        answer = await provider.answer(an_ask("/v1/audio/speech", b'{"model":"p/m","input":"h","voice":"v"}'))
        assert await answer.body.next() == b"some"
        await answer.body.close()
        await upstream.callers[0].gone.wait()


async def test_an_error_of_a_stream_is_whole(client):
    async def say(caller):
        caller.send(whole(b'{"error":{}}', EVENTS, status="429 Too Many"))

    answer, _ = await answered(client, say, streaming())
    assert (answer.status, answer.body) == (429, b'{"error":{}}')


async def test_a_whole_answer_that_is_cut_is_an_error(client):
    async def say(caller):
        caller.send(chunked(JSON), chunk(b'{"a":'))
        caller.close()

    with pytest.raises(ProviderError, match="p broke off its answer"):
        await answered(client, say)


async def test_an_answer_that_is_packed_is_refused(client):
    async def say(caller):
        caller.send(whole(b"\x1f\x8b", JSON, "Content-Encoding: gzip"))

    with pytest.raises(ProviderError, match="p answered in gzip"):
        await answered(client, say)


async def test_the_settings_clocks_hold(client):
    async def say(caller):
        await caller.silence()

    with pytest.raises(ProviderError, match=r"p did not begin to answer within 0\.05 s"):
        await answered(client, say, first_byte_s=0.05)


@pytest.mark.parametrize(
    ("settings", "spoken", "not_spoken", "chat"),
    [
        ({}, "openai.chat", "openai.responses", "openai.chat"),
        ({"kind": "openai"}, "openai.responses", "anthropic.messages", "openai.chat"),
        ({"kind": "anthropic"}, "anthropic.count_tokens", "openai.chat", "anthropic.messages"),
        ({"kind": "hume"}, "hume.tts", "openai.speech", None),
        ({"speaks": ["openai.responses"]}, "openai.responses", "openai.chat", "openai.responses"),
    ],
)
async def test_what_a_service_speaks(client, settings, spoken, not_spoken, chat):
    provider = HttpProvider("p", ProviderSettings(base_url="http://x", **settings), client, KEYS)
    assert (provider.speaks(spoken), provider.speaks(not_spoken)) == (True, False)
    assert (provider.chat and provider.chat.NAME) == chat


async def test_a_dialect_that_a_service_does_not_speak_is_refused(client):
    provider = HttpProvider("p", ProviderSettings(base_url="http://x", kind="hume"), client, KEYS)
    with pytest.raises(BadInput, match=r"p does not serve openai\.chat"):
        await provider.answer(an_ask())


def test_a_known_provider_needs_only_what_is_to_be_different(tmp_path):
    (tmp_path / "doorstep.toml").write_text('[providers.anthropic]\nidle_s = 5\nkey_env = ["ONE", "TWO"]\n')
    found = load(tmp_path / "doorstep.toml").providers["anthropic"]
    assert (found.base_url, found.kind) == (KNOWN_PROVIDERS["anthropic"].base_url, "anthropic")
    assert (found.idle_s, found.key_names) == (5, ["ONE", "TWO"])


def test_a_known_name_with_an_address_of_its_own_gets_no_key_of_the_known_one(tmp_path):
    (tmp_path / "doorstep.toml").write_text('[providers.openai]\nbase_url = "http://127.0.0.1:9/v1"\n')
    found = load(tmp_path / "doorstep.toml").providers["openai"]
    assert (found.key_names, found.kind) == ([], "compatible")

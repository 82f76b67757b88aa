"""The dialects of pictures and sound: what is read of a request, and what of the answers that services really give."""

import json
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.dialects import gemini, hume, openai_videos, table
from doorstep.gateway.dialects.base import Dialect, Reading

GOLDEN = Path(__file__).parent / "golden" / "media"
ANSWERS = [path for path in sorted(GOLDEN.iterdir()) if not path.name.endswith(".reading.json")]
FORMS = ["openai.image_edits", "openai.transcription", "openai.translation"]
JSONS = {
    "openai.images": {"prompt": "a frog", "n": 2, "size": "1024x1024", "x_unknown": 1.10},
    "openai.image_edits": {"prompt": "a frog", "images": [{"image_url": "https://images.example/a.png"}]},
    "openai.speech": {"input": "Grüß dich", "voice": "alloy", "x_unknown": 1.10},
}
DIALECTS = [
    name
    for name in table.DIALECTS
    if name.startswith(("openai.im", "openai.sp", "openai.tr", "openai.v", "hume", "google"))
]


def form(model: str = "openai/m", **fields: str) -> httpx.Request:
    data = {"model": model, **fields}
    return httpx.Request("POST", "http://here", data=data, files={"file": ("a.wav", b"RIFF\r\n\x00", "audio/wav")})


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.name)
def test_an_answer_is_understood(path: Path):
    dialect = table.DIALECTS[".".join(path.name.split(".")[:2])]
    expected = path.with_suffix(".reading.json").read_bytes()
    assert dialect.understand(path.read_bytes()) == msgspec.json.decode(expected, type=Reading)


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.name)
def test_a_stream_that_was_cut_is_never_complete(path: Path):
    dialect, answer = table.DIALECTS[".".join(path.name.split(".")[:2])], path.read_bytes()
    whole = dialect.understand(answer)
    if path.suffix == ".sse":
        assert not any(dialect.understand(answer[:at]).complete for at in range(8, len(answer) - 6))
    else:
        assert whole.usage.output_tokens is None or dialect.understand(answer[:-9]).usage.output_tokens is None


@pytest.mark.parametrize("name", JSONS)
def test_only_the_model_of_a_json_request_is_rewritten(name: str):
    body = json.dumps({"model": "openai/m", **JSONS[name]}).encode()
    dialect = table.DIALECTS[name]
    assert dialect.head(body).model == "openai/m"
    assert json.loads(dialect.with_model(body, "n")) == {**JSONS[name], "model": "n"}
    assert (
        b'"x_unknown":1.10' in dialect.with_model(body.replace(b" 1.1}", b"1.10}"), "n")
        or "x_unknown" not in JSONS[name]
    )


@pytest.mark.parametrize("name", FORMS)
def test_only_the_model_of_a_form_is_rewritten(name: str):
    body = form(stream="true", prompt="x").read()
    dialect = table.DIALECTS[name]
    head = dialect.head(body)
    assert (head.model, head.stream) == ("openai/m", True)
    assert dialect.with_model(body, "whisper-1") == body.replace(b"openai/m", b"whisper-1", 1)


@pytest.mark.parametrize("name", FORMS)
def test_the_record_names_the_files_of_a_form_by_their_digest(name: str):
    body = form(prompt="names: Wolf").read()
    (message,) = table.DIALECTS[name].messages(body)
    text, file = message["content"]
    assert (message["role"], text) == ("user", {"type": "text", "text": "names: Wolf"})
    assert (file["name"], file["media_type"], len(file["sha256"])) == ("a.wav", "audio/wav", 64)


def test_what_is_paid_for_is_counted_in_the_request():
    images = table.DIALECTS["openai.images"].head(b'{"model":"m","prompt":"p","n":3,"stream":true}')
    speech = table.DIALECTS["openai.speech"].head('{"model":"m","input":"Grüße","voice":"v"}'.encode())
    assert (images.stream, images.units) == (True, {"images": 3})
    assert (speech.stream, speech.units) == (False, {"characters": 5})


@pytest.mark.parametrize("name", [*FORMS, *JSONS])
@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{}", "model"),
        (b'{"model":1}', "model"),
        (b'{"model":', "body"),
        (b'{"model":"\xff"}', "body"),
        (b"--x\r\n\r\n", "body"),
        (b"", "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_request_that_cannot_work_is_refused_by_its_field(name: str, body: bytes, where: str):
    with pytest.raises(BadInput) as refused:
        table.DIALECTS[name].head(body)
    assert refused.value.where == where


def test_a_wrong_field_of_a_form_is_named():
    with pytest.raises(BadInput) as refused:
        table.DIALECTS["openai.transcription"].head(form(stream="perhaps").read())
    assert refused.value.where == "stream"


@pytest.mark.parametrize("name", DIALECTS)
@given(st.binary(max_size=300) | st.sampled_from([path.read_bytes() for path in ANSWERS]), st.integers(0, 300))
def test_any_bytes_are_understood_or_refused(name: str, body: bytes, at: int):
    dialect = table.DIALECTS[name]
    dialect.understand(body[at:])
    try:
        dialect.head(body[at:])
        dialect.with_model(body[at:], "m")
    except BadInput:
        pass


@pytest.mark.parametrize("name", DIALECTS)
def test_binary_answers_do_not_choke_it(name: str):
    for sound in (b"RIFF\x00\xff\xfe" * 50, b"\xff\xf3\xc4", b"{\x00\x01", b""):
        assert table.DIALECTS[name].understand(sound).error is None


# Gemini


def test_the_model_of_gemini_is_in_the_address():
    ours = gemini.at("/v1beta/models/google/gemini-3-pro-image:generateContent")
    stream = gemini.at("/google/v1beta/models/gemini-3.8-flash:streamGenerateContent", "key=k&alt=sse")
    assert ours
    assert stream
    body = b'{"contents":[],"generationConfig":{"maxOutputTokens":10,"candidateCount":2}}'
    assert (ours.head(body).model, ours.head(body).stream, ours.head(body).most_output) == (
        "google/gemini-3-pro-image", False, 20,
    )  # fmt: skip
    assert (stream.head(b"{}").model, stream.head(b"{}").stream) == ("google/gemini-3.8-flash", True)
    assert ours.upstream_path("gemini-3-pro-image") == "/v1beta/models/gemini-3-pro-image:generateContent"
    assert stream.upstream_path("g") == "/v1beta/models/g:streamGenerateContent?alt=sse"


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models",
        "/v1beta/models/g:countTokens",
        "/v1beta/models/:generateContent",
        "/v1beta/models/../x:generateContent",
        "/v1beta/models/a?b:generateContent",
        "/v1beta/models/a//b:generateContent",
        "/v1beta/models/a%2F..%2Fb:generateContent",
    ],
)
def test_other_addresses_are_not_gemini(path: str):
    assert gemini.at(path) is None


def test_the_turns_of_gemini_have_roles():
    contents = [{"parts": [{"text": "a"}]}, {"role": "model", "parts": []}]
    body = json.dumps({"systemInstruction": {"parts": [{"text": "s"}]}, "contents": contents}).encode()
    assert [turn["role"] for turn in gemini.READER.messages(body)] == ["system", "user", "model"]


def test_gemini_is_read_in_both_spellings():
    body = b'{"system_instruction":{"parts":[{"text":"s"}]},"contents":[],"generation_config":{"temperature":0.5}}'
    assert gemini.READER.messages(body) == [{"role": "system", "parts": [{"text": "s"}]}]
    assert gemini.READER.sampling(body) == {"temperature": 0.5}


def test_gemini_has_two_versions_of_its_address():
    newer = gemini.at("/v1/models/google/gemini-3.8-flash:generateContent")
    assert newer
    assert newer.head(b"{}").model == "google/gemini-3.8-flash"


def test_an_error_of_gemini_has_googles_shape():
    error = json.loads(gemini.READER.error(429, "too much", param="contents"))["error"]
    assert (error["code"], error["status"], error["message"]) == (429, "RESOURCE_EXHAUSTED", "too much")
    assert error["details"][0]["fieldViolations"] == [{"field": "contents", "description": "too much"}]


# Hume


def test_hume_names_no_model_but_a_version():
    body = b'{"utterances":[{"text":"Hello","description":"calm"},{"text":"you"}],"num_generations":2}'
    head = hume.TTS.head(body)
    assert (head.model, head.stream, head.units) == ("hume/octave-2", False, {"characters": 16})
    assert hume.TTS_STREAM_JSON.head(b'{"utterances":[{"text":"a"}],"version":"1"}').model == "hume/octave-1"
    assert hume.TTS.with_model(body, "octave-2") is body
    assert json.loads(hume.TTS.with_model(body, "octave-1"))["version"] == "1"


def test_the_utterances_of_hume_are_messages():
    body = b'{"utterances":[{"text":"Hello","description":"calm","voice":{"name":"Ava"}}]}'
    assert hume.TTS.messages(body) == [
        {"role": "user", "content": "Hello", "description": "calm", "voice": {"name": "Ava"}}
    ]


@pytest.mark.parametrize("dialect", hume.ALL, ids=lambda dialect: dialect.NAME)
def test_hume_without_utterances_is_refused(dialect: Dialect):
    with pytest.raises(BadInput, match="utterances"):
        dialect.head(b'{"utterances":[]}')


# Videos


def test_a_video_is_read_from_json_and_from_a_form_alike():
    fields = {"model": "google/veo", "prompt": "a frog", "seconds": "8", "size": "1280x720", "seed": "7"}
    from_json = openai_videos.read(json.dumps(fields).encode())
    from_form = openai_videos.read(httpx.Request("POST", "http://here", data=fields, files={"n": b""}).read()
                                   .replace(b'name="n"; filename="upload"', b'name="n"'))  # fmt: skip
    assert from_json == msgspec.structs.replace(from_form, rest={"seed": "7"})
    assert openai_videos.head(json.dumps(fields).encode()).units == {"seconds_720p": 8.0}


def test_a_picture_may_come_as_a_file_or_in_a_data_address():
    data = {"model": "m", "prompt": "p"}
    request = httpx.Request("POST", "http://h", data=data, files={"input_reference": ("a.png", b"png", "image/png")})
    inline = {**data, "input_reference": {"image_url": "data:image/png;base64,cG5n"}}
    expected = openai_videos.Picture(b"png", "image/png")
    assert openai_videos.read(request.read()).picture == expected
    assert openai_videos.read(json.dumps(inline).encode()).picture == expected


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"size": "720p"}, "size"),
        ({"size": "0x720"}, "size"),
        ({"seconds": "nan"}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "long"}, "seconds"),
        ({"prompt": None}, "prompt"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference.file_id"),
        ({"input_reference": {"image_url": "file:///etc/passwd"}}, "input_reference.image_url"),
        ({"input_reference": {"image_url": "data:image/png;base64,?"}}, "input_reference.image_url"),
        ({"input_reference": {"image_url": "data:text/html;base64,AAAA"}}, "input_reference"),
    ],
)
def test_a_video_that_cannot_be_is_refused_by_its_field(changes: dict[str, object], where: str):
    with pytest.raises(BadInput) as refused:
        openai_videos.read(json.dumps({"model": "m", "prompt": "p"} | changes).encode())
    assert refused.value.where == where

"""Forms: found part by part, one field rewritten, and nothing else touched."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.dialects import multipart

FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nopenai/whisper-1\r\n'
    b'--xyz\r\ncontent-disposition: form-data; filename="a \\"b\\".wav"; name="file"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\r\n\r\n--xy\x00\xff\r\n--xyz--\r\n"
)


def test_the_parts_are_found_with_their_names_and_their_bytes():
    model, file = multipart.parts(FORM)
    assert (model.name, model.filename, FORM[model.start : model.end]) == ("model", None, b"openai/whisper-1")
    assert (file.name, file.filename, file.media_type) == ("file", 'a "b".wav', "audio/wav")
    assert FORM[file.start : file.end] == b"RIFF\r\n\r\n--xy\x00\xff"


def test_one_field_is_rewritten_and_every_other_byte_stays():
    changed = multipart.with_text(FORM, "model", "whisper-1")
    assert changed == FORM.replace(b"openai/whisper-1", b"whisper-1")


@given(st.dictionaries(st.text("abc[]_ ü", min_size=1, max_size=8), st.binary(max_size=60), max_size=4))
def test_what_httpx_writes_is_read_back(files: dict[str, bytes]):
    request = httpx.Request("POST", "http://here", files={"f": b"x", **files}, data={"model": "m"})
    body = request.read()
    found = {part.name: body[part.start : part.end] for part in multipart.parts(body)}
    assert found == {"f": b"x", **files, "model": b"m"}


@given(st.binary(max_size=200), st.integers(0, len(FORM)))
def test_any_damage_is_read_or_refused(noise: bytes, at: int):
    body = FORM[:at] + noise + FORM[at:]
    try:
        parts = multipart.parts(body)
    except BadInput:
        return
    assert all(part.start <= part.end <= len(body) for part in parts)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (FORM[:60], "breaks off"),
        (FORM.replace(b"--xyz--", b"--xyzzy"), "no line break"),
        (b"\r\n" + FORM, "neither JSON nor a form"),
        (FORM.replace(b'; name="model"', b""), "has no name"),
        (FORM.replace(b'; name="model"', b'; name="a"; name="model"'), "two values of 'name'"),
        (FORM.replace(b'name="model"', b'name="a"\r\nContent-Disposition: form-data; name="model"'), "exactly one"),
        (b"--x\r\n" + b'content-disposition: form-data; name="a"\r\n\r\n\r\n--x\r\n' * 1001 + b"\r\n--x--", "1000"),
    ],
)
def test_what_readers_could_take_in_two_ways_is_refused(body: bytes, why: str):
    with pytest.raises(BadInput, match=why):
        multipart.parts(body)


def test_a_field_that_comes_twice_is_refused():
    part = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\ncheap\r\n'
    with pytest.raises(BadInput, match="model: given twice"):
        multipart.texts(part + FORM, {"model"})


def test_a_file_where_text_belongs_is_refused():
    with pytest.raises(BadInput, match="model: is a file"):
        multipart.texts(FORM.replace(b'name="model"', b'name="model"; filename="m"'), {"model"})

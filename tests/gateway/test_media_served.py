"""Pictures, sound and video through a real server, and through a second one in front of it as an upstream."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from gateway_parts import serving, settings_for
from pages import ROOT, blocks

from doorstep.config import ModelSettings, ProviderSettings, Settings
from doorstep.store import Store
from doorstep.types import Call, Node

PNG = b"\x89PNG\r\n\x1a\n"
FAKE = ProviderSettings(base_url="fake:")
OCTAVE = {"hume/octave-2": ModelSettings(targets=["fake/echo"])}


def made_by_fake(data: Path) -> Settings:
    return settings_for(data, model="", providers={"fake": FAKE, "google": FAKE}, models=OCTAVE)


def passed_on_to(url: str, data: Path) -> Settings:
    providers = {
        "fake": ProviderSettings(base_url=f"{url}/v1", kind="openai"),
        "google": ProviderSettings(base_url=f"{url}/v1beta", kind="google"),
        "hume": ProviderSettings(base_url=f"{url}/v0", kind="hume"),
    }
    names = {"fake/echo": ["fake/fake/echo"], "fake/video": ["fake/fake/video"], "google/echo": ["google/fake/echo"]}
    models = {name: ModelSettings(targets=list(targets)) for name, targets in names.items()}
    return settings_for(data, model="", providers=providers, models=models)


@pytest.fixture(scope="module", params=["made here", "passed on"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that makes the answers itself, and one that has them from another Doorstep."""
    with serving(made_by_fake(tmp_path_factory.mktemp("made"))) as made:
        if request.param == "made here":
            yield made
            return
        with serving(passed_on_to(made, tmp_path_factory.mktemp("passed"))) as passed:
            yield passed


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_images_are_generated(client: openai.OpenAI):
    answer = client.images.generate(model="fake/echo", prompt="a frog", n=2)
    pictures = [base64.b64decode(one.b64_json or "") for one in answer.data or []]
    assert [picture[:8] for picture in pictures] == [PNG, PNG]


def test_partial_images_are_streamed(client: openai.OpenAI):
    with client.images.generate(model="fake/echo", prompt="a frog", stream=True, partial_images=1) as stream:
        kinds = [event.type for event in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def test_images_are_edited(client: openai.OpenAI):
    pictures = [("a.png", PNG + bytes(range(256)), "image/png"), ("b.png", PNG, "image/png")]
    answer = client.images.edit(model="fake/echo", prompt="a hat", image=pictures, mask=("m.png", PNG, "image/png"))
    assert base64.b64decode((answer.data or [])[0].b64_json or "").startswith(PNG)


def test_speech_comes_as_bytes(client: openai.OpenAI):
    with client.audio.speech.with_streaming_response.create(model="fake/echo", voice="alloy", input="hello") as answer:
        sound = b"".join(answer.iter_bytes())
    assert sound[:4] == b"RIFF"
    assert len(sound) == int.from_bytes(sound[4:8], "little") + 8


def test_sound_is_transcribed(client: openai.OpenAI):
    heard = client.audio.transcriptions.create(model="fake/echo", file=("a.wav", io.BytesIO(b"RIFF\r\n--")))
    assert heard.text == "what the fake provider heard"


def test_a_transcription_is_streamed(client: openai.OpenAI):
    with client.audio.transcriptions.create(model="fake/echo", file=("a.wav", b"RIFF"), stream=True) as stream:
        events = [event.type for event in stream]
    assert events[-1] == "transcript.text.done"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's word on an old model's address
def test_speech_is_translated(client: openai.OpenAI):
    heard = client.audio.translations.create(model="fake/echo", file=("a.wav", b"RIFF"))
    assert heard.text == "what the fake provider heard"


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the SDK's word on a service that has ended
def test_a_video_is_made(client: openai.OpenAI):
    done = client.videos.create_and_poll(model="fake/video", prompt="a frog", seconds="8", poll_interval_ms=200)
    assert (done.status, done.error) == ("completed", None)
    assert client.videos.download_content(done.id).read()[4:8] == b"ftyp"


@pytest.mark.parametrize("path", ["/v1beta/models/google/echo", "/v1/models/google/echo", "/google/v1beta/models/echo"])
def test_gemini_is_answered_in_its_own_format(url: str, path: str):
    asked = {
        "contents": [{"role": "user", "parts": [{"text": "a frog"}]}],
        "generationConfig": {"responseModalities": ["TEXT", "IMAGE"]},
    }
    whole = httpx.post(f"{url}{path}:generateContent", json=asked, headers={"x-goog-api-key": "any"}).json()
    picture = whole["candidates"][0]["content"]["parts"][1]["inlineData"]
    assert base64.b64decode(picture["data"]).startswith(PNG)
    events = httpx.post(f"{url}{path}:streamGenerateContent?alt=sse", json=asked)
    assert events.headers["content-type"].startswith("text/event-stream")
    array = httpx.post(f"{url}{path}:streamGenerateContent", json=asked).json()
    assert array[0]["candidates"][0]["finishReason"] == "STOP"


def test_hume_is_answered_in_its_own_format(url: str):
    asked = {"utterances": [{"text": "Hello", "description": "calm"}], "num_generations": 1}
    found = {
        path: httpx.post(f"{url}/v0/tts{path}", json=asked) for path in ("", "/file", "/stream/json", "/stream/file")
    }
    assert {answer.status_code for answer in found.values()} == {200}
    assert base64.b64decode(found[""].json()["generations"][0]["audio"])[:4] == b"RIFF"
    assert [json.loads(line)["type"] for line in found["/stream/json"].text.splitlines()] == ["audio"]
    assert found["/file"].content[:4] == found["/stream/file"].content[:4] == b"RIFF"


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_examples_of_the_page_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(PNG)
    for example in blocks(ROOT / "docs/how-to/make-media.md", "python"):
        names: dict[str, object] = {}
        exec(example.replace("http://127.0.0.1:8000", url), names)
        names["client"].close()
    assert Path("speech.mp3").read_bytes()[:4] == b"RIFF"
    assert Path("frog.mp4").read_bytes()[4:8] == b"ftyp"


def test_media_are_calls_of_the_record(tmp_path: Path):
    settings = made_by_fake(tmp_path)
    with serving(settings) as url, openai.OpenAI(base_url=f"{url}/runs/run_1/v1", api_key="any") as client:
        client.images.generate(model="fake/echo", prompt="a frog", n=2)
        client.audio.speech.create(model="fake/echo", voice="alloy", input="hello")
        client.audio.transcriptions.create(model="fake/echo", file=("a.wav", b"RIFF"))
        httpx.post(f"{url}/v0/tts", json={"utterances": [{"text": "Hello"}, {"text": "you"}]})
    with Store.open(settings.record) as store:
        calls = {call.dialect: call for call in store.select(Call)}
        roles = [node.role for node in store.select(Node, run_id="run_1")]
    assert {name: call.units for name, call in calls.items()} == {
        "openai.images": {"images": 2.0},
        "openai.speech": {"characters": 5.0},
        "openai.transcription": {},
        "hume.tts": {"characters": 8.0},
    }
    assert (calls["openai.transcription"].input_tokens, calls["openai.transcription"].run_id) == (10, "run_1")
    assert "assistant" in roles


def test_pictures_may_be_larger_than_text(tmp_path: Path):
    with serving(made_by_fake(tmp_path)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        picture = ("a.png", PNG + bytes(12_000_000), "image/png")
        assert client.images.edit(model="fake/echo", prompt="a hat", image=picture).data
        with pytest.raises(openai.APIStatusError, match="larger than 10 MB"):
            client.chat.completions.create(model="fake/echo", messages=[{"role": "user", "content": "x" * 12_000_000}])

"""The official ``openai`` SDK at the addresses of vectors, pictures, sound and video."""

import pytest
from sdk_parts import PNG, WAV

MODELS = ["fake/echo", "openai/fake/echo"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Itself, and a service whose bytes pass."""
    return str(request.param)


def test_vectors(gpt, model):
    found = gpt.embeddings.create(model=model, input=["one", "two words"])
    first, second = (item.embedding for item in found.data)
    assert (len(first), len(second), first != second) == (8, 8, True)
    plain = gpt.embeddings.create(model=model, input=["one", "two words"], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(first)


def test_vectors_of_a_given_length(gpt, model):
    found = gpt.embeddings.create(model=model, input="one", dimensions=16)
    assert (len(found.data[0].embedding), found.usage.prompt_tokens) == (16, 1)


def test_pictures(gpt, model):
    made = gpt.images.generate(model=model, prompt="a cat", n=2)
    assert [len(picture.b64_json) > 50 for picture in made.data] == [True, True]
    assert made.usage.output_tokens == 2


def test_a_picture_piece_by_piece(gpt, model):
    events = list(gpt.images.generate(model=model, prompt="a cat", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]


def test_a_changed_picture(gpt, model):
    made = gpt.images.edit(model=model, image=("cat.png", PNG, "image/png"), prompt="with a hat")
    assert len(made.data[0].b64_json) > 50


def test_a_speech(gpt, model):
    assert gpt.audio.speech.create(model=model, voice="alloy", input="hello").content.startswith(b"RIFF")


def test_a_speech_into_a_file(gpt, model, tmp_path):
    with gpt.audio.speech.with_streaming_response.create(model=model, voice="alloy", input="hello") as answer:
        answer.stream_to_file(tmp_path / "hello.wav")
    assert (tmp_path / "hello.wav").read_bytes().startswith(b"RIFF")


def test_a_transcription(gpt, model):
    heard = gpt.audio.transcriptions.create(model=model, file=("hello.wav", WAV))
    assert heard.text == "what the fake provider heard"


def test_a_transcription_as_a_stream(gpt, model):
    events = list(gpt.audio.transcriptions.create(model=model, file=("hello.wav", WAV), stream=True))
    words = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert words.strip() == events[-1].text == "what the fake provider heard"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # in the SDK
def test_a_translation(gpt, model):
    heard = gpt.audio.translations.create(model=model, file=("hello.wav", WAV))
    assert heard.text == "what the fake provider heard"


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # OpenAI's own is gone; others speak its format
def test_a_video_from_the_order_to_the_file(gpt):
    ordered = gpt.videos.create(model="fake/video", prompt="a cat", seconds="4", size="1280x720")
    assert ordered.status in ("queued", "in_progress")
    done = gpt.videos.poll(ordered.id, poll_interval_ms=100)
    assert (done.status, done.progress, done.seconds) == ("completed", 100, "4")
    assert b"ftyp" in gpt.videos.download_content(done.id).content[:12]
    assert done.id in [video.id for video in gpt.videos.list()]
    assert gpt.videos.delete(done.id).deleted

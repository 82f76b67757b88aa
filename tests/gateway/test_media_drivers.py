"""The drivers of videos against services that speak as the documented ones do, over real HTTP."""

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from starlette.responses import JSONResponse
from video_door import Service, listening, video_door

from doorstep.config import KNOWN_PROVIDERS, ProviderSettings
from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.dialects.openai_videos import Picture, VideoRequest
from doorstep.gateway.media.compatible import CompatibleVideos
from doorstep.gateway.media.drivers import Order, Progress, VideoDriver
from doorstep.gateway.media.fake import PIXEL, FakeVideos, mp4
from doorstep.gateway.media.openrouter import OpenRouterVideos
from doorstep.gateway.media.upstream import Upstream
from doorstep.gateway.media.veo import VeoVideos
from doorstep.gateway.media.wiring import drivers
from doorstep.http_client import Client

PNG = Picture(b"\x89PNG", "image/png")


def order(model: str = "veo-3.1", remix_of: str | None = None, **changes: object) -> Order:
    asked = VideoRequest(model=f"x/{model}", prompt="a frog", seconds=8.0, width=1280, height=720)
    asked = msgspec.structs.replace(asked, **changes)
    return Order(job_id="video_1", model=model, asked=asked, remix_of=remix_of)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as made:
        yield made


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with listening(made.app) as made.url:
        yield made


@pytest.fixture
def openrouter(client: Client, service: Service) -> OpenRouterVideos:
    return OpenRouterVideos(Upstream("openrouter", client, f"{service.url}/api/v1", [(b"authorization", b"Bearer k")]))


@pytest.fixture
def veo(client: Client, service: Service) -> VeoVideos:
    return VeoVideos(Upstream("google", client, f"{service.url}/v1beta", [(b"x-goog-api-key", b"k")]))


async def contents(driver: VideoDriver, upstream_id: str) -> bytes:
    return b"".join([piece async for piece in driver.download(upstream_id, "video")])


async def test_a_service_with_openais_format_makes_a_video(client: Client, tmp_path: Path):
    fake = FakeVideos(duration_s=0)
    with video_door(tmp_path, {"fake": fake}) as url:
        driver = CompatibleVideos(Upstream("vllm", client, f"{url}/v1"))
        upstream_id = await driver.submit(order("fake/video", picture=PNG, rest={"fps": 16, "note": 'a "b"\r\n'}))
        while (progress := await driver.poll(upstream_id)).status != "completed":
            pass
        assert progress == Progress(status="completed", percent=100, seconds=8.0)
        assert await contents(driver, upstream_id) == mp4(8)
        assert b"".join([piece async for piece in driver.download(upstream_id, "thumbnail")]) == PIXEL
    asked = fake.orders[0].asked
    assert (asked.prompt, asked.size, asked.picture) == ("a frog", "1280x720", PNG)
    assert asked.rest == {"fps": "16", "note": 'a "b"\r\n'}


async def test_a_service_with_openais_format_remixes(client: Client, tmp_path: Path):
    fake = FakeVideos(duration_s=0)
    with video_door(tmp_path, {"fake": fake}) as url:
        driver = CompatibleVideos(Upstream("vllm", client, f"{url}/v1"))
        first = await driver.submit(order("fake/video"))
        while (await driver.poll(first)).status != "completed":
            pass
        second = await driver.submit(order("fake/video", remix_of=first, prompt="a toad"))
        while (await driver.poll(second)).status != "completed":
            pass
    assert fake.orders[1].asked.prompt == "a toad"


async def test_the_words_of_a_refusal_are_passed_on(client: Client, tmp_path: Path):
    with video_door(tmp_path, {"fake": FakeVideos()}) as url:
        driver = CompatibleVideos(Upstream("vllm", client, f"{url}/v1"))
        with pytest.raises(ProviderError, match="vllm answered 400: model: the fake provider makes") as refused:
            await driver.submit(order("fake/radio"))
        assert not refused.value.retryable
        with pytest.raises(ProviderError, match="vllm answered 404: there is no video 'video_9'"):
            await contents(driver, "video_9")


async def test_openrouter_makes_a_video(openrouter: OpenRouterVideos, service: Service):
    service.polls = [
        JSONResponse({"id": "job-abc", "status": "pending"}),
        JSONResponse({"id": "job-abc", "status": "in_progress"}),
    ]
    upstream_id = await openrouter.submit(order("google/veo-3.1", rest={"generate_audio": True}))
    assert service.orders == [
        {"model": "google/veo-3.1", "prompt": "a frog", "duration": 8, "size": "1280x720", "generate_audio": True}
    ]
    assert [(await openrouter.poll(upstream_id)).status for _ in range(3)] == ["queued", "in_progress", "completed"]
    assert await contents(openrouter, upstream_id) == mp4(8)
    assert set(service.keys) == {"Bearer k"}


@pytest.mark.parametrize(
    ("picture", "url"),
    [({"picture": PNG}, "data:image/png;base64,iVBORw=="), ({"picture_url": "https://a.b/c"}, "https://a.b/c")],
)
async def test_openrouter_gets_a_picture_as_the_first_frame(
    openrouter: OpenRouterVideos, service: Service, picture: dict[str, object], url: str
):
    await openrouter.submit(order(**picture))
    assert service.orders[0]["frame_images"] == [
        {"type": "image_url", "image_url": {"url": url}, "frame_type": "first_frame"}
    ]


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
async def test_what_openrouter_gives_up_has_failed(openrouter: OpenRouterVideos, service: Service, status: str):
    service.polls = [JSONResponse({"id": "job-abc", "status": status, "error": "no frogs today"})]
    assert await openrouter.poll("job-abc") == Progress(status="failed", error="no frogs today")


async def test_veo_makes_a_video(veo: VeoVideos, service: Service):
    service.polls = [JSONResponse({"name": "models/veo-3.1/operations/op1"})]
    upstream_id = await veo.submit(order(picture=PNG, rest={"negativePrompt": "toads"}))
    image = {"bytesBase64Encoded": base64.b64encode(PNG.data).decode(), "mimeType": "image/png"}
    assert service.orders == [
        {
            "instances": [{"prompt": "a frog", "image": image}],
            "parameters": {
                "aspectRatio": "16:9", "resolution": "720p", "durationSeconds": 8, "negativePrompt": "toads",
            },
        }
    ]  # fmt: skip
    assert [(await veo.poll(upstream_id)).status for _ in range(2)] == ["in_progress", "completed"]
    assert await contents(veo, upstream_id) == mp4(8)


async def test_a_key_does_not_follow_to_another_host(client: Client, service: Service):
    elsewhere = Service()
    with listening(elsewhere.app) as elsewhere.url:
        upstream = Upstream("google", client, "http://127.0.0.1:1/v1beta", [(b"x-goog-api-key", b"k")])
        got = b"".join([piece async for piece in upstream.pieces(f"{elsewhere.url}/elsewhere/f1")])
    assert (got, elsewhere.keys) == (mp4(8), [None])


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ({"error": {"code": 3, "message": "the prompt is too long"}}, "the prompt is too long"),
        (
            {
                "response": {
                    "generateVideoResponse": {"raiMediaFilteredCount": 1, "raiMediaFilteredReasons": ["a face"]}
                }
            },
            "a face",
        ),
        ({"response": {}}, "Veo made no video and did not say why"),
    ],
)
async def test_what_veo_does_not_make_has_failed(veo: VeoVideos, service: Service, end: dict[str, object], why: str):
    service.polls = [JSONResponse({"name": "models/veo-3.1/operations/op1", "done": True, **end})]
    assert await veo.poll("models/veo-3.1/operations/op1") == Progress(status="failed", error=why)


@pytest.mark.parametrize(
    ("driver", "changes", "where"),
    [
        ("veo", {"width": 1000}, "size"),
        ("veo", {"seconds": 4.5}, "seconds"),
        ("veo", {"picture_url": "https://a.b/c"}, "input_reference"),
        ("veo", {"model": "../secret"}, "model"),
        ("veo", {"remix_of": "op1"}, "video_id"),
        ("openrouter", {"remix_of": "job-abc"}, "video_id"),
        ("openrouter", {"seconds": 4.5}, "seconds"),
    ],
)
def test_what_a_service_cannot_do_is_refused_before(
    driver: str, changes: dict[str, object], where: str, request: pytest.FixtureRequest
):
    asked: VideoDriver = request.getfixturevalue(driver)
    with pytest.raises(BadInput) as refused:
        asked.check(order(**changes))
    assert refused.value.where == where


async def test_trouble_that_may_pass_is_marked(veo: VeoVideos, service: Service):
    service.polls = [JSONResponse({"error": {"message": "too many"}}, 429), JSONResponse({"error": "gone"}, 404)]
    with pytest.raises(ProviderError, match="google answered 429: too many") as passing:
        await veo.poll("models/veo-3.1/operations/op1")
    with pytest.raises(ProviderError, match="google answered 404: gone") as lasting:
        await veo.poll("models/veo-3.1/operations/op1")
    assert (passing.value.retryable, lasting.value.retryable) == (True, False)


async def test_a_provider_gets_the_driver_of_its_kind(client: Client):
    providers = {**KNOWN_PROVIDERS, "fake": ProviderSettings(base_url="fake:")}
    found = drivers(providers, client, {"GEMINI_API_KEY": "k"})
    kinds = {name: type(found.get(name)) for name in ("openai", "google", "openrouter", "fake", "anthropic", "hume")}
    assert list(kinds.values()) == [
        CompatibleVideos, VeoVideos, OpenRouterVideos, FakeVideos, type(None), type(None),
    ]  # fmt: skip

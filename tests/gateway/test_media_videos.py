"""Video jobs through OpenAI's own SDK, which marks its methods as those of a service that has ended."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import openai
import pytest
from video_door import Ledger, picture, video_door

from doorstep.errors import ProviderError
from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects import openai_videos
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.gateway.media.drivers import Order
from doorstep.gateway.media.fake import PIXEL, FakeVideos, mp4
from doorstep.store import Store
from doorstep.types import Call, Job, JobState

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def desk() -> Ledger:
    return Ledger()


@pytest.fixture
def fake() -> FakeVideos:
    return FakeVideos(duration_s=0.1)


@pytest.fixture
def url(tmp_path: Path, fake: FakeVideos, desk: Ledger) -> Iterator[str]:
    with video_door(tmp_path, {"fake": fake}, desk) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as made:
        yield made


def client_of(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def made(client: openai.OpenAI, model: str = "fake/video", **more: object) -> openai.types.Video:
    return client.videos.create_and_poll(model=model, prompt="a frog", poll_interval_ms=20, **more)


def states(data: Path, job_id: str) -> list[JobState]:
    with Store.open(data / "doorstep.db") as store:
        return store.select(JobState, job_id=job_id)


def test_a_video_is_ordered_polled_and_downloaded(client: openai.OpenAI):
    ordered = client.videos.create(model="fake/video", prompt="a frog", seconds="8", size="1280x720")
    assert (ordered.status, ordered.progress, ordered.seconds, ordered.size) == ("queued", 0, "8", "1280x720")
    done = client.videos.poll(ordered.id, poll_interval_ms=20)
    assert (done.status, done.progress, done.model, done.error) == ("completed", 100, "fake/video", None)
    assert done.completed_at is not None
    assert client.videos.download_content(done.id).read() == mp4(8)


async def test_the_asynchronous_sdk_does_it_too(url: str):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        done = await client.videos.create_and_poll(model="fake/video", prompt="a frog", poll_interval_ms=20)
        assert (await client.videos.download_content(done.id)).content == mp4(4)


def test_the_pictures_of_a_video_come_from_the_service(client: openai.OpenAI):
    assert client.videos.download_content(made(client).id, variant="thumbnail").read() == PIXEL


def test_a_part_of_a_video_can_be_had(client: openai.OpenAI):
    got = client.videos.with_raw_response.download_content(made(client).id, extra_headers={"Range": "bytes=4-7"})
    assert (got.status_code, got.http_response.read()) == (206, b"ftyp")


def test_a_video_becomes_one_call_of_the_record(client: openai.OpenAI, desk: Ledger):
    done = made(client, seconds="8", size="1920x1080", extra_headers={"x-doorstep-customer": "acme"})
    (call,) = desk.kept
    assert (call.provider, call.served_model, call.status, call.units) == ("fake", "video", 200, {"seconds_1080p": 8.0})
    assert (call.customer, call.requested_model, call.error) == ("acme", "fake/video", None)
    assert openai_videos.messages(call.request) == [{"role": "user", "content": "a frog"}]
    assert msgspec.json.decode(call.response)["id"] == done.id


def test_a_job_says_which_call_it_will_be(client: openai.OpenAI, desk: Ledger):
    ordered = client.videos.with_raw_response.create(model="fake/video", prompt="a frog")
    done = client.videos.poll(ordered.parse().id, poll_interval_ms=20)
    later = client.videos.with_raw_response.retrieve(done.id)
    named = {answer.headers["x-doorstep-call-id"] for answer in (ordered, later)}
    assert named == {desk.kept[0].call_id}


def test_a_call_of_a_run_is_recorded_with_it(url: str, desk: Ledger):
    with openai.OpenAI(base_url=f"{url}/runs/run_7/v1", api_key="any") as client:
        made(client)
    assert desk.kept[0].run_id == "run_7"


def test_a_video_that_fails_says_why_and_is_recorded(client: openai.OpenAI, desk: Ledger):
    failed = made(client, "fake/video-broken")
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.message == "the fake provider fails here, as told"
    assert (desk.kept[0].status, desk.kept[0].units) == (502, {})
    with pytest.raises(openai.BadRequestError, match="this video is failed"):
        client.videos.download_content(failed.id)


def test_a_picture_to_begin_with_reaches_the_service(client: openai.OpenAI, fake: FakeVideos):
    made(client, input_reference=("a.png", b"\x89PNG", "image/png"))
    made(client, extra_body={"input_reference": {"image_url": picture()}})
    pictures = [order.asked.picture for order in fake.orders]
    assert pictures == [openai_videos.Picture(b"\x89PNG", "image/png")] * 2


def test_fields_that_are_the_services_own_reach_it(client: openai.OpenAI, fake: FakeVideos):
    made(client, extra_body={"negative_prompt": "toads"})
    assert fake.orders[0].asked.rest == {"negative_prompt": "toads"}


def test_a_remix_begins_from_another_video(client: openai.OpenAI, fake: FakeVideos):
    first = made(client, seconds="8")
    second = client.videos.remix(first.id, prompt="a toad")
    assert (second.remixed_from_video_id, second.prompt, second.seconds) == (first.id, "a toad", "8")
    assert client.videos.poll(second.id, poll_interval_ms=20).status == "completed"
    assert fake.orders[1].remix_of is not None


def test_videos_are_listed_page_by_page(client: openai.OpenAI):
    ids = [client.videos.create(model="fake/video", prompt=str(n)).id for n in range(5)]
    listed = sorted(ids, reverse=True)
    assert [video.id for video in client.videos.list(limit=2)] == listed
    first = client.videos.list(limit=2)
    assert ([video.id for video in first.data], first.has_more, first.last_id) == (listed[:2], True, listed[1])
    assert [video.id for video in client.videos.list(order="asc", after=min(ids)).data] == listed[::-1][1:]


def test_a_deleted_video_is_gone_with_its_file(client: openai.OpenAI, tmp_path: Path):
    done = made(client, input_reference=("a.png", b"\x89PNG", "image/png"))
    assert len(files(tmp_path)) == 2
    assert client.videos.delete(done.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no video"):
        client.videos.retrieve(done.id)
    assert client.videos.list().data == []
    assert files(tmp_path) == []


def test_erasing_a_customer_takes_the_video_and_the_picture_it_began_with(tmp_path: Path, fake: FakeVideos):
    desk = Ledger()
    with video_door(tmp_path, {"fake": fake}, desk) as url, client_of(url) as client:
        headers = {"x-doorstep-customer": "acme"}
        done = made(client, input_reference=("a.png", b"\x89PNG", "image/png"), extra_headers=headers)
        with Store.open(tmp_path / "doorstep.db") as store:
            store.add(call_of(desk.kept[0]))
            erased = store.delete_customer("acme")
        assert sorted(erased.artefacts) == sorted(path.name for path in files(tmp_path))
        assert client.videos.list().data == []
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(done.id)


def test_a_file_that_a_killed_server_left_half_written_is_cleared_away(tmp_path: Path, fake: FakeVideos):
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / "0a.part").write_bytes(b"half")
    with video_door(tmp_path, {"fake": fake}):
        assert files(tmp_path) == []


def test_a_file_that_another_video_shares_stays(client: openai.OpenAI):
    first, second = made(client), made(client)
    client.videos.delete(first.id)
    assert client.videos.download_content(second.id).read() == mp4(4)


def test_a_video_under_way_is_not_deleted(client: openai.OpenAI):
    ordered = client.videos.create(model="fake/video", prompt="a frog")
    with pytest.raises(openai.BadRequestError, match="can be deleted when that is over"):
        client.videos.delete(ordered.id)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"size": "large"}, "size"),
        ({"seconds": "many"}, "seconds"),
        ({"model": "fake/radio"}, "model"),
        ({"model": "nobody/video"}, "model"),
        ({"input_reference": ("a.txt", b"x", "text/plain")}, "input_reference"),
    ],
)
def test_what_cannot_be_made_is_refused_and_not_recorded(
    client: openai.OpenAI, desk: Ledger, changes: dict[str, object], param: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(**{"model": "fake/video", "prompt": "a frog"} | changes)
    assert refused.value.param == param
    assert (desk.kept, client.videos.list().data) == ([], [])


def test_a_list_without_sense_is_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.list(limit=0)
    assert refused.value.param == "limit"


def test_nobody_sees_the_videos_of_another_key(tmp_path: Path, fake: FakeVideos):
    roles = {"a": Role.MEMBER, "b": Role.MEMBER, "boss": Role.ADMIN}
    secrets = [Keys(tmp_path).create(Terms(name=name, role=role))[1] for name, role in roles.items()]
    with video_door(tmp_path, {"fake": fake}) as url, ExitStack() as stack:
        mine, theirs, boss = (stack.enter_context(client_of(url, secret)) for secret in secrets)
        video = made(mine)
        assert [len(client.videos.list().data) for client in (mine, theirs, boss)] == [1, 0, 1]
        with pytest.raises(openai.NotFoundError):
            theirs.videos.retrieve(video.id)


def test_a_key_that_may_only_read_orders_no_video(tmp_path: Path, fake: FakeVideos):
    secret = Keys(tmp_path).create(Terms(name="eye", role=Role.VIEWER))[1]
    with video_door(tmp_path, {"fake": fake}) as url:
        with client_of(url, secret) as client, pytest.raises(openai.PermissionDeniedError):
            client.videos.create(model="fake/video", prompt="a frog")
        with client_of(url, "tml-wrong") as client, pytest.raises(openai.AuthenticationError):
            client.videos.list()


def test_a_job_goes_on_after_a_restart(tmp_path: Path, desk: Ledger):
    with video_door(tmp_path, {"fake": FakeVideos(duration_s=60)}, desk) as url, client_of(url) as client:
        ordered = client.videos.create(model="fake/video", prompt="a frog")
        while client.videos.retrieve(ordered.id).status == "queued":
            pass
    assert desk.kept == []
    with video_door(tmp_path, {"fake": FakeVideos(duration_s=0)}, desk) as url, client_of(url) as client:
        assert client.videos.poll(ordered.id, poll_interval_ms=20).status == "completed"
    assert len(desk.kept) == 1


def test_a_job_that_was_just_being_ordered_is_not_ordered_twice(tmp_path: Path, fake: FakeVideos):
    job = Job(
        job_id="video_1", kind="video", created_us=1, call_id="call_1", provider="fake", model="video",
        request={"asked": {"model": "fake/video", "prompt": "p", "seconds": 4, "width": 720, "height": 1280}},
    )  # fmt: skip
    with Store.open(tmp_path / "doorstep.db") as store:
        store.add(job, JobState(state_id="video_1/000001", job_id="video_1", at_us=2, status="in_progress"))
    with video_door(tmp_path, {"fake": fake}) as url, client_of(url) as client:
        failed = client.videos.poll("video_1", poll_interval_ms=20)
    assert failed.error is not None
    assert "order it again" in failed.error.message
    assert fake.orders == []


def test_each_state_is_a_row_and_the_file_has_the_name_of_its_content(client: openai.OpenAI, tmp_path: Path):
    done = made(client)
    rows = states(tmp_path, done.id)
    assert [row.status for row in rows][:2] == ["queued", "in_progress"]
    assert rows[-1].status == "completed"
    assert [row.progress for row in rows] == sorted(row.progress for row in rows)
    assert rows[-1].artefact == f"{hashlib.sha256(mp4(4)).hexdigest()}.mp4"


class Flaky(FakeVideos):
    """Is busy when it is asked first, and loses the connection now and then."""

    trouble = 6

    def _fail(self, status: int) -> None:
        self.trouble -= 1
        if self.trouble >= 0 and self.trouble % 2:
            raise ProviderError("in trouble", status=status)

    async def submit(self, order: Order) -> str:
        self._fail(503)
        return await super().submit(order)

    async def poll(self, upstream_id: str):
        self._fail(502)
        return await super().poll(upstream_id)


def test_passing_trouble_of_the_service_is_waited_out(tmp_path: Path):
    flaky = Flaky(duration_s=0.2)
    with video_door(tmp_path, {"fake": flaky}) as url, client_of(url) as client:
        assert made(client).status == "completed"
    assert (len(flaky.orders), flaky.trouble < 0) == (1, True)


def call_of(capture: Capture) -> Call:
    return msgspec.convert(
        {**msgspec.structs.asdict(capture), "status_code": capture.status}, Call, from_attributes=True
    )


def files(data: Path) -> list[Path]:
    return [path for path in (data / "artefacts").rglob("*") if path.is_file()]

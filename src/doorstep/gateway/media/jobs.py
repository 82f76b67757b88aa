"""Videos as durable jobs: a row when one is ordered, a row for each thing that becomes of it, its file at the end.

Whoever orders a video has his answer at once. A task per job then has the service make it, asks how far it is, fetches
the file and keeps the call in the record. A server that stops leaves its jobs as they are, and the next one goes on
with them. A job is ordered at most once: one that was just being ordered when the server was killed fails, since nobody
knows whether the service is making that video and will want money for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from doorstep import ids
from doorstep.errors import BadInput, DoorstepError, NotFound, ProviderError, StoreError
from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects import openai_videos
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.dialects.openai_videos import Picture, Video, VideoRequest
from doorstep.gateway.keys import Caller, Role
from doorstep.gateway.limits import Reservation
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.gateway.media.drivers import Order, Progress, Variant, VideoDriver
from doorstep.store import Store
from doorstep.store import jobs as queries
from doorstep.types import Job, JobState

log = logging.getLogger(__name__)

KIND = "video"
MOST_S = 3600.0  # after which a job that is not done has failed
POLL_MOST_S = 10.0  # between two questions
TRIES = 4  # at ordering and at fetching, as long as the trouble may pass
ENDED = ("completed", "failed")

T = TypeVar("T")


class Desk(Protocol):
    """The gateway as jobs need it."""

    def admit(self, caller: Caller, name: str, head: Head, size: int) -> tuple[str, str, Reservation]:
        """Return the provider and the model behind a name, and what was reserved; raises for what may not be."""
        ...

    def keep(self, capture: Capture, reservation: Reservation | None) -> None:
        """Record a call that has ended, and settle what was reserved."""
        ...


class Whose(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf something is asked for."""

    caller: Caller
    run_id: str | None = None
    customer: str | None = None


class Shown(NamedTuple):
    """A job as its client sees it, and the call that it will be in the record."""

    video: Video
    call_id: str


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A job's request as it is stored: its picture is a file of its own."""

    asked: VideoRequest
    picture: str | None = None  # the artefact's name
    media_type: str | None = None
    upstream_of: str | None = None  # the service's id of the video that this one is a remix of
    run_id: str | None = None
    customer: str | None = None


class Videos:
    """The video jobs of one data folder. ``poll_s`` is the first pause between two questions; pauses get longer."""

    def __init__(
        self,
        store: Store,
        artefacts: Artefacts,
        drivers: Mapping[str, VideoDriver],
        desk: Desk,
        poll_s: float = 2.0,
    ) -> None:
        self._store = store
        self._artefacts = artefacts
        self._drivers = drivers
        self._desk = desk
        self._poll_s = poll_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go on with the jobs that a former server left, and clear away the files that it was in the middle of."""
        await asyncio.to_thread(self._artefacts.clear)
        for job in await asyncio.to_thread(queries.live_jobs, self._store, KIND):
            state = (await self._states([job.job_id]))[job.job_id]
            self._begin(job, state, None)

    async def close(self) -> None:
        """Leave all jobs as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What clients ask

    async def create(self, whose: Whose, body: bytes) -> Shown:
        """Order a video."""
        return await self._create(whose, openai_videos.read(body), len(body), None, None)

    async def remix(self, whose: Whose, video_id: str, body: bytes) -> Shown:
        """Order a video that is made from another one."""
        job, state = await self._found(whose.caller, video_id)
        if state.status != "completed":
            raise BadInput("video_id", f"this video is {state.status}; only a completed one can be remixed")
        prompt = openai_videos.read_remix(body)
        asked = msgspec.structs.replace(_stored(job).asked, prompt=prompt, picture_url=None)
        return await self._create(whose, asked, len(body), job.job_id, state.upstream_id)

    async def get(self, caller: Caller, video_id: str) -> Shown:
        """Return a job."""
        job, state = await self._found(caller, video_id)
        return Shown(_video(job, state), job.call_id)

    async def page(
        self, caller: Caller, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[Video], bool]:
        """Return up to ``limit`` jobs of this caller, those after ``after``, and whether there are more."""
        key_id = None if caller.role is Role.ADMIN else caller.key_id
        jobs = await asyncio.to_thread(
            queries.jobs, self._store, KIND, key_id, after=after, limit=limit + 1, newest_first=newest_first
        )
        states = await self._states([job.job_id for job in jobs])
        return [_video(job, states[job.job_id]) for job in jobs[:limit] if job.request], len(jobs) > limit

    async def file(self, caller: Caller, video_id: str) -> Path:
        """Return where a completed video is."""
        _, state = await self._completed(caller, video_id)
        path = self._artefacts.path(str(state.artefact))
        if not await asyncio.to_thread(path.exists):
            raise NotFound(f"the file of '{video_id}' is not there any longer")
        return path

    async def picture(self, caller: Caller, video_id: str, variant: Variant) -> bytes:
        """Return a picture of a completed video, as the service has it."""
        job, state = await self._completed(caller, video_id)
        pieces = self._driver(job.provider).download(str(state.upstream_id), variant)
        return b"".join([piece async for piece in pieces])

    async def delete(self, caller: Caller, video_id: str) -> None:
        """Delete a job that has ended, and its files."""
        job, state = await self._found(caller, video_id)
        if state.status not in ENDED:
            raise BadInput("video_id", f"this video is {state.status}; it can be deleted when that is over")
        await self._added(_next(state, status="deleted", artefact=None))
        for name in (state.artefact, _stored(job).picture):
            if name is not None and not await asyncio.to_thread(queries.artefact_in_use, self._store, name):
                await asyncio.to_thread(self._artefacts.delete, name)

    async def _create(
        self, whose: Whose, asked: VideoRequest, size: int, remix_of: str | None, upstream_of: str | None
    ) -> Shown:
        caller = whose.caller
        head = Head(model=asked.model, units={openai_videos.seconds_unit(asked.width, asked.height): asked.seconds})
        provider, model, reservation = self._desk.admit(caller, asked.model, head, size)
        try:
            job_id = ids.new_id(KIND)
            order = Order(job_id=job_id, model=model, asked=asked, remix_of=upstream_of)
            self._driver(provider).check(order)
            artefact = await self._kept_picture(asked)
            job = Job(
                job_id=job_id,
                kind=KIND,
                created_us=ids.now_us(),
                call_id=ids.new_id("call"),
                provider=provider,
                model=model,
                request=msgspec.to_builtins(
                    Stored(
                        asked=msgspec.structs.replace(asked, picture=None),
                        picture=artefact,
                        media_type=None if asked.picture is None else asked.picture.media_type,
                        upstream_of=upstream_of,
                        run_id=whose.run_id,
                        customer=whose.customer or caller.customer,
                    )
                ),
                key_id=caller.key_id or None,
                remix_of=remix_of,
            )
            first = f"{job_id}/{0:06d}"
            state = JobState(state_id=first, job_id=job_id, at_us=job.created_us, status="queued", artefact=artefact)
            await asyncio.to_thread(self._store.add, job, state)
        except BaseException:
            reservation.release()
            raise
        self._begin(job, state, reservation)
        return Shown(_video(job, state), job.call_id)

    async def _kept_picture(self, asked: VideoRequest) -> str | None:
        if asked.picture is None:
            return None
        return await self._artefacts.put_bytes(asked.picture.data, openai_videos.PICTURES[asked.picture.media_type])

    async def _found(self, caller: Caller, video_id: str) -> tuple[Job, JobState]:
        job = await asyncio.to_thread(self._store.get, Job, video_id)
        mine = job is not None and (caller.role is Role.ADMIN or job.key_id == caller.key_id)
        if job is not None and mine and job.kind == KIND and job.request:  # without it, its content was erased
            state = (await self._states([video_id]))[video_id]
            if state.status != "deleted":
                return job, state
        raise NotFound(f"there is no video '{video_id[:100]}'")

    async def _completed(self, caller: Caller, video_id: str) -> tuple[Job, JobState]:
        job, state = await self._found(caller, video_id)
        if state.status != "completed":
            raise BadInput("video_id", f"this video is {state.status}; it has content when it is completed")
        return job, state

    async def _states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Return the newest state of each job."""
        rows = await asyncio.to_thread(self._store.select_in, JobState, "job_id", job_ids)
        return {row.job_id: row for row in rows}  # in the order of their keys: the last one counts

    def _driver(self, provider: str) -> VideoDriver:
        driver = self._drivers.get(provider)
        if driver is None:
            who = ", ".join(f"{name}/…" for name in self._drivers) or "none is configured"
            raise BadInput("model", f"'{provider}' makes no videos. Who does: {who}")
        return driver

    # What a job goes through

    def _begin(self, job: Job, state: JobState, reservation: Reservation | None) -> None:
        task = asyncio.create_task(self._work(_Live(job, state, reservation)), name=job.job_id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, live: "_Live") -> None:
        try:
            await self._order(live)
            seconds = await self._wait(live)
            artefact = await self._again(lambda: self._fetched(live))
        except DoorstepError as error:
            await self._end(live, str(error), _status(error))
        except Exception:
            log.exception("video %s", live.job.job_id)
            await self._end(live, "Doorstep failed at it; see its log", 500)
        else:
            await self._complete(live, artefact, seconds)
        finally:
            if live.reservation is not None:
                live.reservation.release()  # of what was not settled

    async def _order(self, live: "_Live") -> None:
        """Have the service know the job."""
        job = live.job
        if live.state.upstream_id is not None:
            return
        if live.state.status != "queued":
            raise ProviderError("the server stopped while this video was being ordered; order it again", status=500)
        await self._add(live, status="in_progress", artefact=None)  # the first state's was the picture it was given
        driver, stored = self._driver(job.provider), _stored(job)
        asked = stored.asked
        if stored.picture is not None:
            data = await asyncio.to_thread(self._artefacts.path(stored.picture).read_bytes)
            asked = msgspec.structs.replace(asked, picture=Picture(data, str(stored.media_type)))
        order = Order(job_id=job.job_id, model=job.model, asked=asked, remix_of=stored.upstream_of)
        upstream_id = await self._again(lambda: driver.submit(order), busy_only=True)
        await self._add(live, upstream_id=upstream_id)

    async def _wait(self, live: "_Live") -> float:
        """Ask until the video is made; return its seconds."""
        job, driver, pause = live.job, self._driver(live.job.provider), self._poll_s
        while True:
            progress = await self._progress(live, driver)
            if progress.status == "completed":
                return progress.seconds or _stored(job).asked.seconds
            if progress.status == "failed":
                raise ProviderError(progress.error or f"{job.provider} failed and did not say why", retryable=False)
            if progress.percent > live.state.progress:
                await self._add(live, progress=min(progress.percent, 99))
            if ids.now_us() - job.created_us > MOST_S * 1e6:
                raise ProviderError(f"{job.provider} did not finish within {MOST_S:g} s", status=504)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, max(POLL_MOST_S, self._poll_s))

    async def _progress(self, live: "_Live", driver: VideoDriver) -> Progress:
        """Ask how far it is; trouble that may pass is no news."""
        try:
            return await driver.poll(str(live.state.upstream_id))
        except ProviderError as error:
            if not error.retryable:
                raise
            log.warning("video %s: %s", live.job.job_id, error)
            return Progress(status="in_progress")

    async def _fetched(self, live: "_Live") -> str:
        pieces = self._driver(live.job.provider).download(str(live.state.upstream_id), "video")
        return await self._artefacts.put(pieces, "mp4")

    async def _again(self, ask: Callable[[], Awaitable[T]], *, busy_only: bool = False) -> T:
        """Ask, and again when that may help; with ``busy_only`` only a service that surely did not take it."""
        for attempt in range(TRIES - 1):
            try:
                return await ask()
            except ProviderError as error:
                if not (error.status in (429, 503) if busy_only else error.retryable):
                    raise
                await asyncio.sleep(self._poll_s * 2**attempt)
        return await ask()

    async def _complete(self, live: "_Live", artefact: str, seconds: float) -> None:
        """Keep the call, then say that it is done; a kill between the two repeats this, which changes nothing."""
        last = _next(live.state, status="completed", progress=100, artefact=artefact)
        self._desk.keep(_capture(live.job, last, 200, seconds), live.reservation)
        await self._added(last)

    async def _end(self, live: "_Live", why: str, status: int) -> None:
        """Keep the call, then say that it failed."""
        last = _next(live.state, status="failed", error=why)
        self._desk.keep(_capture(live.job, last, status, None), live.reservation)
        await self._added(last)

    async def _add(self, live: "_Live", **changes: Any) -> None:
        live.state = await self._added(_next(live.state, **changes))

    async def _added(self, state: JobState) -> JobState:
        """Write a state, when the store takes it, and return it."""
        while True:
            try:
                await asyncio.to_thread(self._store.add, state)
            except StoreError as error:
                log.error("video %s waits for the store: %s", state.job_id, error)
                await asyncio.sleep(1.0)
            else:
                return state


class _Live:
    """A job under way: its newest state, and what was reserved for it, which a restart forgets."""

    def __init__(self, job: Job, state: JobState, reservation: Reservation | None) -> None:
        self.job = job
        self.state = state
        self.reservation = reservation


def _next(state: JobState, **changes: Any) -> JobState:
    """Return the state after this one; their ids count on, so that the newest is the last by its key."""
    number = int(state.state_id.rpartition("/")[2]) + 1
    state_id = f"{state.job_id}/{number:06d}"
    return msgspec.structs.replace(state, state_id=state_id, at_us=ids.now_us(), **changes)


def _stored(job: Job) -> Stored:
    return msgspec.convert(job.request, Stored)


def _video(job: Job, state: JobState) -> Video:
    """Return a job as its client sees it."""
    asked = _stored(job).asked
    return Video(
        id=job.job_id,
        model=asked.model,
        status=state.status,
        progress=state.progress,
        created_at=job.created_us // 1_000_000,
        completed_at=state.at_us // 1_000_000 if state.status == "completed" else None,
        prompt=asked.prompt,
        seconds=f"{asked.seconds:g}",
        size=asked.size,
        remixed_from_video_id=job.remix_of,
        error=None if state.error is None else {"code": "video_generation_failed", "message": state.error},
    )


def _capture(job: Job, last: JobState, status: int, seconds: float | None) -> Capture:
    """Return the call that a job was, from its order to its end."""
    stored = _stored(job)
    asked = stored.asked
    reference = None if stored.picture is None else {"artefact": stored.picture, "media_type": stored.media_type}
    request = {
        "model": asked.model,
        "prompt": asked.prompt,
        "seconds": f"{asked.seconds:g}",
        "size": asked.size,
        openai_videos.REFERENCE: reference or asked.picture_url,
        "remix_of": job.remix_of,
        **asked.rest,
    }
    unit = openai_videos.seconds_unit(asked.width, asked.height)
    return Capture(
        call_id=job.call_id,
        run_id=stored.run_id,
        dialect=openai_videos.NAME,
        requested_model=asked.model,
        served_model=job.model,
        provider=job.provider,
        adapter=None,
        stream=False,
        started_us=job.created_us,
        first_us=None,
        ended_us=last.at_us,
        status=status,
        error=last.error,
        request=msgspec.json.encode({name: value for name, value in request.items() if value is not None}),
        response=openai_videos.write(_video(job, last)),
        key_id=job.key_id,
        customer=stored.customer,
        upstream_id=last.upstream_id,
        units={} if seconds is None else {unit: seconds},
    )


def _status(error: DoorstepError) -> int:
    """Return what a failure is recorded with."""
    if isinstance(error, ProviderError):
        return error.status
    return 400 if isinstance(error, BadInput) else 500

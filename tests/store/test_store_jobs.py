"""The queries of jobs, on every database."""

from doorstep.store import Store, jobs
from doorstep.types import Job, JobState


def add(store: Store, name: str, *statuses: str, artefact: str | None = None, picture: str | None = None, key="k"):
    job = Job(
        job_id=name, kind="video", created_us=1, call_id=f"call_{name}", provider="fake", model="video",
        request={"picture": picture}, key_id=key,
    )  # fmt: skip
    states = [
        JobState(state_id=f"{name}/{number}", job_id=name, at_us=number, status=status, artefact=artefact)
        for number, status in enumerate(statuses)
    ]
    store.add(job, *states)


def test_jobs_that_have_not_ended_are_live(store: Store):
    add(store, "a", "queued", "in_progress")
    add(store, "b", "queued", "completed")
    add(store, "c", "queued", "failed", "deleted")
    add(store, "d", "queued")
    assert [job.job_id for job in jobs.live_jobs(store, "video")] == ["a", "d"]
    assert jobs.live_jobs(store, "other") == []


def test_a_page_has_the_jobs_of_a_key_that_were_not_deleted(store: Store):
    for name in "abcde":
        add(store, name, "queued", key="other" if name == "c" else "k")
    add(store, "f", "completed", "deleted")

    def page(key: str | None, after: str | None, *, newest_first: bool = True) -> str:
        found = jobs.jobs(store, "video", key, after=after, limit=2, newest_first=newest_first)
        return "".join(job.job_id for job in found)

    assert [page("k", None), page("k", "d"), page("k", "a")] == ["ed", "ba", ""]
    assert [page(None, "d"), page("k", "b", newest_first=False)] == ["cb", "de"]


def test_a_file_is_in_use_as_long_as_a_job_has_it(store: Store):
    add(store, "a", "completed", artefact="one.mp4")
    add(store, "b", "completed", picture="two.png")
    add(store, "c", "completed", "deleted", artefact="three.mp4", picture="four.png")
    in_use = [jobs.artefact_in_use(store, name) for name in ("one.mp4", "two.png", "three.mp4", "four.png")]
    assert in_use == [True, True, False, False]

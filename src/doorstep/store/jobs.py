"""Named queries of asynchronous jobs: which are under way, pages of them, and whether a file is still needed."""

import sqlalchemy as sa

from doorstep import types
from doorstep.store import schema
from doorstep.store.store import Store
from doorstep.types import Job

JOB = schema.TABLES[types.Job]
STATE = schema.TABLES[types.JobState]
OVER = ("completed", "failed", "deleted")


def live_jobs(store: Store, kind: str) -> list[Job]:
    """Return the jobs of a kind that have not come to their end, the oldest first."""
    over = sa.exists().where(STATE.c.job_id == JOB.c.job_id, STATE.c.status.in_(OVER))
    return _jobs(store, sa.select(JOB).where(JOB.c.kind == kind, ~over).order_by(JOB.c.job_id))


def jobs(
    store: Store, kind: str, key_id: str | None, *, after: str | None, limit: int, newest_first: bool
) -> list[Job]:
    """Return up to ``limit`` jobs that are not deleted, those after ``after``; of one key, or of all for None."""
    deleted = sa.exists().where(STATE.c.job_id == JOB.c.job_id, STATE.c.status == "deleted")
    query = sa.select(JOB).where(JOB.c.kind == kind, ~deleted)
    if key_id is not None:
        query = query.where(JOB.c.key_id == key_id)
    if after is not None:
        query = query.where(JOB.c.job_id < after if newest_first else JOB.c.job_id > after)
    order = JOB.c.job_id.desc() if newest_first else JOB.c.job_id.asc()
    return _jobs(store, query.order_by(order).limit(limit))


def artefact_in_use(store: Store, name: str) -> bool:
    """Tell whether a job that is not deleted has this file, made or given."""
    deleted = sa.exists().where(STATE.c.job_id == JOB.c.job_id, STATE.c.status == "deleted")
    made = sa.exists().where(STATE.c.job_id == JOB.c.job_id, STATE.c.artefact == name)
    given = JOB.c.request["picture"].as_string() == name
    return bool(store.rows(sa.select(JOB.c.job_id).where(~deleted, made | given).limit(1)))


def _jobs(store: Store, query: sa.Select[tuple[object, ...]]) -> list[Job]:
    return [schema.from_row(Job, row) for row in store.rows(query)]

"""Records for the store's tests, with what matters left to the test."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from doorstep.store import Store
from doorstep.types import Grade, GradeSource, Mode, Run, RunStatus, TokenSpan


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with Store.open(where) as opened:
        yield opened


@pytest.fixture
def make_run() -> Callable[..., Run]:
    def make(run_id: str = "run_1", **changes: Any) -> Run:
        values: dict[str, Any] = {
            "workflow": "orders",
            "variant": "base",
            "mode": Mode.PROD,
            "task_id": "t1",
            "task_digest": "d1",
            "status": RunStatus.OK,
            "started_us": 1,
            "ended_us": 2,
        }
        return Run(run_id=run_id, **(values | changes))

    return make


@pytest.fixture
def make_grade() -> Callable[..., Grade]:
    def make(grade_id: str, value: float | None = 1.0, at_us: int = 1, **changes: Any) -> Grade:
        values: dict[str, Any] = {"run_id": "run_1", "name": "exact", "source": GradeSource.CODE, "grader_version": "1"}
        return Grade(grade_id=grade_id, value=value, at_us=at_us, **(values | changes))

    return make


@pytest.fixture
def make_span() -> Callable[..., TokenSpan]:
    def make(span_id: str, seq: int, ids: list[int], logprobs: list[float] | None = None, **changes: Any) -> TokenSpan:
        values: dict[str, Any] = {
            "call_id": "call_1",
            "run_id": "run_1",
            "exact": True,
            "sampled": logprobs is not None,
        }
        packed = None if logprobs is None else struct.pack(f"<{len(logprobs)}f", *logprobs)
        raw = struct.pack(f"<{len(ids)}i", *ids)
        return TokenSpan(span_id=span_id, seq=seq, ids=raw, logprobs=packed, **(values | changes))

    return make

"""What Langfuse exports (from its pages, its API or to a bucket) as runs, calls, grades and feedback.

A trace is a run, a generation a call, a score feedback and, from 0 to 1, a grade. Newer exports have no traces, only
observations that repeat what is said of their trace; then the run is made from the observation at the root. Columns may
be spelled ``traceId`` or ``trace_id``. The files are read twice, since a score may come before what it is about.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway import opinions
from doorstep.gateway.migration import history
from doorstep.gateway.migration.files import Line, plain
from doorstep.gateway.migration.history import Entry, Said, imported_id
from doorstep.store import Store
from doorstep.types import Call, Feedback, GradeSource, Mode, Record, Run, RunStatus

PROGRAM = "langfuse"
ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}  # as LangChain has them
SOURCES = {"EVAL": GradeSource.JUDGE, "ANNOTATION": GradeSource.HUMAN, "API": GradeSource.OUTCOME}
MICRO = 1_000_000


class Trace(msgspec.Struct):
    """What is to be known of a trace before its run can be written. ``carrier`` is the line that becomes the run."""

    carrier: str = ""
    rank: int = 0  # of the carrier: 3 the trace itself, 2 the root, 1 any observation
    name: str | None = None
    user: str | None = None
    started_us: int | None = None
    ended_us: int | None = None
    generations: int = 0

    def spans(self, started_us: int, ended_us: int) -> None:
        """Widen the trace to the time of one of its parts."""
        self.started_us = started_us if self.started_us is None else min(self.started_us, started_us)
        self.ended_us = ended_us if self.ended_us is None else max(self.ended_us, ended_us)


class Index(msgspec.Struct):
    """What the first reading finds."""

    traces: dict[str, Trace] = {}
    generations: set[str] = set()


def entries(read: Callable[[], Iterable[Line]], store: Store, workflow: str | None = None) -> Iterator[Entry]:
    """Yield what each line becomes. ``read`` gives the lines from the beginning; it is called twice.

    Runs belong to ``workflow``, or to one that is called as their trace.
    """
    index = Index()
    for line in _flat(read()):
        try:
            _note(index, line)
        except BadInput:
            continue  # it is told when it is read again
    for line in _flat(read()):
        if line.error is not None:
            yield Entry(where=line.where, why=line.error)
            continue
        try:
            yield _entry(line, index, store, workflow)
        except BadInput as error:
            yield Entry(where=line.where, why=f"{error.where}: {error.why}")


def _flat(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield each row by itself, also those inside their trace, with their names spelled in one way."""
    for where, value, error in lines:
        inner = value.get("trace")
        trace = (
            {**inner, **{name: value[name] for name in value if name != "trace"}} if isinstance(inner, dict) else value
        )
        row = {_camel(name): field for name, field in trace.items()}
        parts = [(name, row.get(name)) for name in ("observations", "scores")]
        yield Line(where, row, error)
        for name, listed in parts:
            for number, part in enumerate(listed if isinstance(listed, list) else (), start=1):
                if isinstance(part, dict):
                    own = {_camel(field): inner for field, inner in part.items()}
                    yield Line(f"{where} {name} {number}", {"traceId": row.get("id"), **own})


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), name)


def _is_score(row: Mapping[str, Any]) -> bool:
    return "startTime" not in row and "name" in row and ("value" in row or "stringValue" in row)


def _note(index: Index, line: Line) -> None:
    row = line.value
    if line.error is not None or _is_score(row):
        return
    if "startTime" in row:
        trace = index.traces.setdefault(_id(row, "traceId"), Trace())
        started_us, ended_us = _times(row)
        trace.spans(started_us, ended_us)
        trace.name = trace.name or row.get("traceName")
        trace.user = trace.user or row.get("userId")
        rank = 1 if row.get("parentObservationId") else 2
        if row.get("type") == "GENERATION":
            said = _said(row)
            index.generations.add(said.upstream_id)
            trace.generations += 1
    elif "timestamp" in row:
        trace, rank = index.traces.setdefault(_id(row, "id"), Trace()), 3
        at_us = _us(row, "timestamp")
        trace.spans(at_us, at_us)
        trace.name, trace.user = row.get("name") or trace.name, row.get("userId") or trace.user
    else:
        return
    if rank > trace.rank:
        trace.rank, trace.carrier = rank, line.where


def _entry(line: Line, index: Index, store: Store, workflow: str | None) -> Entry:
    row = line.value
    if _is_score(row):
        return _score(line.where, row, index, store)
    if "startTime" in row:
        trace_id, _ = _id(row, "traceId"), _times(row)
    elif "timestamp" in row:
        trace_id, _ = _id(row, "id"), _us(row, "timestamp")
    else:
        raise BadInput("columns", "no trace, observation or score")
    rows: list[Record] = []
    blobs: Mapping[str, bytes] = {}
    if row.get("type") == "GENERATION":
        rows, blobs = history.call_rows(_said(row))
    trace = index.traces[trace_id]
    if trace.carrier == line.where:
        rows.append(_run(trace_id, trace, row, workflow))
    return Entry(where=line.where, rows=rows, blobs=blobs, joined=not rows)


def _run(trace_id: str, trace: Trace, row: Mapping[str, Any], workflow: str | None) -> Run:
    assert trace.started_us is not None  # its carrier has a time
    assert trace.ended_us is not None
    failed = row.get("level") == "ERROR"
    return Run(
        run_id=imported_id("run", PROGRAM, trace_id),
        workflow=history.text(workflow or trace.name or PROGRAM),
        variant=history.IMPORTED,
        mode=Mode.PROD,
        task_id=history.text(trace_id),
        task_digest=ids.digest(plain(row.get("input"))),
        status=RunStatus.AGENT_ERROR if failed else RunStatus.OK,
        started_us=trace.started_us,
        ended_us=trace.ended_us,
        customer=history.text(trace.user) if trace.user else None,
        output=plain(row.get("output")),
        error=history.text(row.get("statusMessage") or "it failed") if failed else None,
        gaps=[history.IMPORTED, history.NO_IDS],
    )


# Generations


def _said(row: Mapping[str, Any]) -> Said:
    observation = _id(row, "id")
    started_us, ended_us = _times(row)
    model = str(row.get("providedModelName") or row.get("model") or "unknown")
    provider, slash, _ = model.partition("/")
    given = plain(row.get("input"))
    sampling = plain(row.get("modelParameters"))
    settings = {**sampling} if isinstance(sampling, dict) else {}
    if isinstance(given, dict) and given.get("tools"):
        settings["tools"] = given["tools"]
    first = row.get("completionStartTime")
    failed = row.get("level") == "ERROR"
    answer = _answer(plain(row.get("output")))
    return Said(
        call_id=imported_id("call", PROGRAM, observation),
        run_id=imported_id("run", PROGRAM, _id(row, "traceId")),
        upstream_id=observation,
        requested_model=model,
        model=model,
        provider=provider if slash else PROGRAM,
        messages=_messages(given),
        answer=answer,
        settings={name: value for name, value in settings.items() if name not in ("model", "messages")},
        usage=_usage(row),
        finish_reason="tool_calls" if answer and answer.get("tool_calls") else "stop",
        started_us=started_us,
        first_us=_us(row, "completionStartTime") if first else None,
        ended_us=ended_us,
        error=history.text(row.get("statusMessage") or "it failed") if failed else None,
        cost_microusd=_cost(row),
        customer=history.text(row["userId"]) if row.get("userId") else None,
    )


def _messages(given: Any) -> list[dict[str, Any]]:
    """Return an input as messages; what is none is one of the user."""
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        given = given["messages"]
    if isinstance(given, list) and given and all(isinstance(each, dict) and _role(each) for each in given):
        return [_plain_message(each) | {"role": _role(each)} for each in given]
    return [{"role": "user", "content": _as_text(given)}]


def _answer(given: Any) -> dict[str, Any] | None:
    """Return an output as the assistant's message; None where there is none."""
    if given in (None, ""):
        return None
    if isinstance(given, dict) and isinstance(given.get("choices"), list) and given["choices"]:
        choice = given["choices"][0]
        given = choice.get("message", choice) if isinstance(choice, dict) else choice
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, dict) and (_role(given) or given.keys() & {"content", "tool_calls"}):
        return {"content": None, **_plain_message(given), "role": "assistant"}
    return {"role": "assistant", "content": _as_text(given)}


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "type" and value is not None}


def _role(message: Mapping[str, Any]) -> str | None:
    role = message.get("role") or ROLES.get(str(message.get("type")))
    return role if isinstance(role, str) else None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _usage(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the tokens in OpenAI's words. Langfuse counts parts apart, so that all that came in is their sum."""
    details = plain(row.get("usageDetails")) or plain(row.get("usage"))
    if not isinstance(details, dict):
        return None
    counts = {name.lower(): history.whole(each, "usage") for name, each in details.items() if _number(each) is not None}
    given = [count for name, count in counts.items() if re.search(r"input|prompt", name)]
    made = [count for name, count in counts.items() if re.search(r"output|completion", name)]
    cached = [count for name, count in counts.items() if re.search(r"cached|cache_read", name)]
    thought = [count for name, count in counts.items() if "reasoning" in name]
    if not given or not made:
        return None
    return {
        "prompt_tokens": sum(given),
        "completion_tokens": sum(made),
        "total_tokens": sum(given) + sum(made),
        "prompt_tokens_details": {"cached_tokens": sum(cached)},
        "completion_tokens_details": {"reasoning_tokens": sum(thought)},
    }


def _cost(row: Mapping[str, Any]) -> int | None:
    """Return what it cost. Langfuse has 0 for models whose price it does not know."""
    details = plain(row.get("costDetails"))
    given = row.get("totalCost") or row.get("calculatedTotalCost")
    if not given and isinstance(details, dict):
        given = details.get("total")
    usd = _number(given)
    return history.whole(usd * MICRO + 0.5, "totalCost") if usd else None


# Scores


def _score(where: str, row: Mapping[str, Any], index: Index, store: Store) -> Entry:
    run_id, call_id, graded = _target(row, index, store)
    score_id, at_us = _id(row, "id"), _us(row, "timestamp")
    kind, value = _value(row)
    source = SOURCES.get(str(row.get("source")), GradeSource.OUTCOME)
    name = history.text(row["name"])

    def said(part: str, kind: str, value: Any) -> Feedback:
        return Feedback(
            feedback_id=imported_id("feedback", PROGRAM, part),
            at_us=at_us,
            run_id=run_id,
            call_id=call_id,
            kind=kind,
            name=name,
            value=value,
            source=source,
        )

    feedback = said(score_id, kind, value)
    grade = opinions.grade_of(feedback, graded)
    rows: list[Record] = [feedback] if grade is None else [feedback, grade]
    if row.get("comment"):
        rows.append(said(f"{score_id}/comment", "comment", str(row["comment"])))
    return Entry(where=where, rows=rows)


def _value(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Return kind and value of a score."""
    kind, number = str(row.get("dataType") or "NUMERIC"), _number(row.get("value"))
    if kind == "BOOLEAN" and number in (0, 1):
        return "boolean", number == 1
    if kind == "NUMERIC" and number is not None:
        return "float", number
    said = row.get("stringValue") or row.get("longStringValue") or row.get("value")
    if kind == "CORRECTION" and said:
        return "demonstration", plain(said)
    if kind in ("CATEGORICAL", "TEXT") and said:
        return "comment", str(said)
    raise BadInput("value", f"{said!r} is no value of a {kind.lower()} score")


def _target(row: Mapping[str, Any], index: Index, store: Store) -> tuple[str | None, str | None, str | None]:
    """Return the run or the call that a score is about, and the run that it judges."""
    trace_id, observation = row.get("traceId"), str(row.get("observationId") or "")
    if not trace_id:
        raise BadInput("traceId", "it is about a session, or a dataset's run; only scores of traces can be taken")
    run_id = imported_id("run", PROGRAM, str(trace_id))
    trace = index.traces.get(str(trace_id))
    if trace is None and store.get(Run, run_id) is None:
        raise BadInput("traceId", f"there is no trace {trace_id}, neither in these rows nor imported before")
    if not observation:
        return run_id, None, run_id
    call_id = imported_id("call", PROGRAM, observation)
    if observation not in index.generations and store.get(Call, call_id) is None:
        return run_id, None, None  # about a step that is no model call
    count = trace.generations if trace else len(store.select(Call, run_id=run_id, limit=2))
    return None, call_id, run_id if count == 1 else None


# Columns


def _id(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise BadInput(name, "it is missing")
    return history.text(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return {"true": 1.0, "false": 0.0}.get(str(value).lower())
    return number if abs(number) < float("inf") else None


def _times(row: Mapping[str, Any]) -> tuple[int, int]:
    started_us = _us(row, "startTime")
    return started_us, max(started_us, _us(row, "endTime")) if row.get("endTime") else started_us


def _us(row: Mapping[str, Any], name: str) -> int:
    try:
        return opinions.us_of(datetime.fromisoformat(str(row.get(name))))
    except ValueError:
        raise BadInput(name, f"{row.get(name)!r} is no time") from None

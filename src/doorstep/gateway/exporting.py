"""What leaves the record: calls and runs as plain objects, with what was asked and answered in them, redacted.

A streamed answer is given as what it says, never as its pieces: a secret may be in two of them. Pictures, sound and
other bytes cannot be looked into; redacted, they are left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from doorstep.gateway.dialects.base import Reading
from doorstep.gateway.dialects.table import DIALECTS
from doorstep.store import Store, pages, queries
from doorstep.store.redaction import redact_value
from doorstep.store.views import current, gaps_of
from doorstep.types import Call, Feedback, Grade, Node, Run, ToolCall

MEDIA = "media"  # what is left out is counted as
_BYTES = re.compile(r"data:[\w.+-]{1,64}/[\w.+-]{1,64};base64,|[A-Za-z0-9+/_=-]{1000,}$")  # so long a word is none


class Outlet:
    """Gives objects out. ``found`` counts what was redacted, by kind; nothing is, unless ``redacts``."""

    def __init__(self, store: Store, *, redacts: bool = True) -> None:
        self.found: Counter[str] = Counter()
        self._store = store
        self._redacts = redacts

    def calls(self, workflow: str | None = None, since: int = 0) -> Iterator[dict[str, Any]]:
        """Yield calls, of the runs of a workflow or all."""
        for page in pages.calls(self._store, workflow, since):
            workflows = queries.workflows_of(self._store, {call.run_id for call in page if call.run_id})
            said = self._feedback("call_id", [call.call_id for call in page])
            for call in page:
                yield self._call(call, workflows.get(call.run_id or ""), said.get(call.call_id, []))

    def runs(self, workflow: str | None = None, since: int = 0) -> Iterator[dict[str, Any]]:
        """Yield runs with their messages, uses of tools, grades and feedback."""
        for page in pages.runs(self._store, workflow, since):
            run_ids = [run.run_id for run in page]
            nodes = _by_run(self._store.select_in(Node, "run_id", run_ids))
            tools = _by_run(self._store.select_in(ToolCall, "run_id", run_ids))
            grades = _by_run(current(self._store.select_in(Grade, "run_id", run_ids)))
            said = self._feedback("run_id", run_ids)
            for run in page:
                given: dict[str, Any] = {
                    "messages": [self._message(node) for node in nodes.get(run.run_id, [])],
                    "tool_calls": [self._tool_call(use) for use in tools.get(run.run_id, [])],
                    "grades": [self._grade(grade) for grade in grades.get(run.run_id, [])],
                    "feedback": said.get(run.run_id, []),
                }
                yield self._run(run) | given

    def _call(self, call: Call, workflow: str | None, said: list[dict[str, Any]]) -> dict[str, Any]:
        reading = self._reading(call)
        return {
            "call_id": call.call_id,
            "run_id": call.run_id,
            "workflow": workflow,
            "customer": self._clean(call.customer),
            "at": _moment(call.started_us),
            "seconds": (call.ended_us - call.started_us) / 1e6,
            "dialect": call.dialect,
            "requested_model": call.requested_model,
            "provider": call.provider,
            "model": call.served_model,
            "status": call.status_code,
            "error": self._clean(call.error),
            "finish_reason": call.finish_reason,
            "input_tokens": call.input_tokens,
            "output_tokens": call.output_tokens,
            "cost_microusd": call.cost_microusd,
            "gaps": call.gaps,
            "request": self._body(call.request_digest),
            "answer": {"texts": self._clean(reading.texts), "messages": self._clean(reading.messages)},
            "feedback": said,
        }

    def _run(self, run: Run) -> dict[str, Any]:
        return {
            "run_id": run.run_id,
            "workflow": run.workflow,
            "variant": run.variant,
            "mode": run.mode,
            "task_id": self._clean(run.task_id),
            "customer": self._clean(run.customer),
            "at": _moment(run.started_us),
            "seconds": (run.ended_us - run.started_us) / 1e6,
            "status": run.status,
            "error": self._clean(run.error),
            "confidence": run.confidence,
            "needs_person": run.needs_person,
            "output": self._clean(run.output),
            "gaps": gaps_of(self._store, run.run_id),
        }

    def _message(self, node: Node) -> dict[str, Any]:
        return {
            "id": node.node_id,
            "parent": node.parent_id,
            "role": node.role,
            "sampled": node.sampled,
            "content": self._body(node.content_digest or None),
        }

    def _tool_call(self, use: ToolCall) -> dict[str, Any]:
        said = {name: self._clean(getattr(use, name)) for name in ("arguments", "result", "error")}
        return {"name": use.name, "effect": use.effect, **said}

    def _grade(self, grade: Grade) -> dict[str, Any]:
        said = {"why": self._clean(grade.why), "at": _moment(grade.at_us)}
        return {"name": grade.name, "value": grade.value, "source": grade.source, **said}

    def _feedback(self, field: str, about: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Return what was said, by what it was said about, the newest last."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(self._store.select_in(Feedback, field, about), key=lambda row: (row.at_us, row.feedback_id)):
            said = {"kind": row.kind, "name": row.name, "value": self._clean(row.value)}
            found.setdefault(getattr(row, field), []).append(said | {"source": row.source, "at": _moment(row.at_us)})
        return found

    def _body(self, digest: str | None) -> Any:
        """Return a body as the JSON or the text that it is."""
        body = self._store.blob(digest) if digest is not None else None
        if body is None:
            return None
        try:
            return self._clean(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        try:
            return self._clean(body.decode())
        except UnicodeDecodeError:
            return self._left_out(len(body))

    def _reading(self, call: Call) -> Reading:
        body = self._store.blob(call.response_digest) if call.response_digest is not None else None
        dialect = DIALECTS.get(call.dialect)
        if body is None or dialect is None or call.status_code >= 400:
            return Reading()
        try:
            return dialect.understand(body)
        except Exception:  # its gaps say that it was not understood
            return Reading()

    def _clean(self, value: Any) -> Any:
        if not self._redacts or value is None:
            return value
        cleaned, found = redact_value(self._without_bytes(value))
        self.found += found
        return cleaned

    def _without_bytes(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._without_bytes(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._without_bytes(inner) for inner in value]
        if isinstance(value, str) and _BYTES.match(value):
            return self._left_out(len(value))
        return value

    def _left_out(self, size: int) -> str:
        if self._redacts:
            self.found[MEDIA] += 1
        return f"[{MEDIA}: {size} bytes]"


def _by_run(rows: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.run_id, []).append(row)
    return found


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat()

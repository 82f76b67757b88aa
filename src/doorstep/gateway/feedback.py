"""Feedback over HTTP: ``/feedback`` and ``/runs/{run_id}/feedback``, late, repeated, one or many at once.

A call is in the store some milliseconds after its answer, longer when the store is busy or away. Feedback on an id that
the store does not know therefore waits until everything that was recorded before it has arrived. Only when the store
does not get that far within ``WAIT_S`` is an id that looks right taken at its word.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep import ids
from doorstep.errors import BadInput, DoorstepError, NotFound, StoreError, UsageError
from doorstep.gateway import opinions
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.door import NO_KEY
from doorstep.gateway.keys import Caller
from doorstep.gateway.opinions import Opinion
from doorstep.store import Store
from doorstep.types import Call, Feedback, Grade, Run

log = logging.getLogger(__name__)

BODY_BYTES = 1_000_000
MOST = 1000  # opinions at once
WAIT_S = 2.0
LOOK_S = 0.02
NO_FEEDBACK = "this key may read, not give feedback; use one with the role member"
CALL_ID = re.compile(r"call_[0-9a-hjkmnp-tv-z]{26}")  # as ids.new_id makes them

Who = Callable[[Mapping[bytes, bytes]], Caller | None]


class Lag(Protocol):
    """How far the store is behind the calls, as places in the stream of what was recorded."""

    @property
    def written(self) -> int: ...  # noqa: D102

    @property
    def stored(self) -> int: ...  # noqa: D102


class Conflict(UsageError):
    """An id that was used for something else."""


class Known(NamedTuple):
    """What the store knows of the ids that opinions name: calls with their runs, those without another, and runs."""

    run_of: dict[str, str | None]
    alone: frozenset[str]
    runs: set[str]

    def lacks(self, opinion: Opinion) -> list[str]:
        """Return the ids that are not known."""
        missing = [call_id for call_id in opinion.call_ids if call_id not in self.run_of]
        if opinion.run_id is not None and opinion.call_id is None and opinion.run_id not in self.runs:
            missing.append(opinion.run_id)
        return missing


def routes(store: Store, lag: Lag, who: Who) -> list[Route]:
    """Return the routes to put at the root, before those of the gateway; ``who`` says who sends a request."""
    desk = _Desk(store, lag, who)
    found = []
    for path in ("/feedback", "/runs/{run_id}/feedback"):
        found += [
            Route(path, desk.answering(desk.give, gives=True), methods=["POST"]),
            Route(path, desk.answering(desk.show), methods=["GET"]),
        ]
    return found


class _Desk:
    """Answers each kind of request."""

    def __init__(self, store: Store, lag: Lag, who: Who) -> None:
        self._store = store
        self._lag = lag
        self._who = who

    async def give(self, request: Request, caller: Caller) -> Any:
        run_id = request.path_params.get("run_id")
        sent = await _body(request)
        if not isinstance(sent, list):
            (result,) = await self._keep([opinions.read(sent, run_id)], caller)
            if isinstance(result, Exception):
                raise result
            return result
        if len(sent) > MOST:
            raise BadInput("body", f"{len(sent)} at once are too many; send at most {MOST}")
        read = [_read(each, run_id) for each in sent]
        kept = iter(await self._keep([each for each in read if isinstance(each, Opinion)], caller))
        results = [next(kept) if isinstance(each, Opinion) else each for each in read]
        return {"data": [_error(each) if isinstance(each, Exception) else each for each in results]}

    async def show(self, request: Request, _caller: Caller) -> Any:
        query = request.query_params
        run_id = request.path_params.get("run_id") or query.get("run_id")
        call_id = query.get("call_id")
        if (run_id is None) == (call_id is None):
            raise BadInput("run_id", "say of what: run_id, or call_id")
        found = await asyncio.to_thread(feedback_of, self._store, run_id, call_id)
        return {"data": [_shown(each) for each in found]}

    async def _keep(self, read: Sequence[Opinion], caller: Caller) -> list[Any]:
        """Write opinions; return for each what was kept, or why not."""
        known, behind = await self._known(read)
        results: list[Any] = []
        taken: dict[int, Opinion] = {}
        for place, opinion in enumerate(read):
            missing = known.lacks(opinion)
            if missing and not (behind and _look_right(missing, opinion)):
                results.append(NotFound(f"there is no run or call {', '.join(missing)}"))
            elif opinion.call_id and opinion.run_id not in (None, known.run_of.get(opinion.call_id, opinion.run_id)):
                results.append(BadInput("run_id", f"{opinion.call_id} is no call of the run {opinion.run_id}"))
            else:
                taken[place] = opinion
                results.append(None)
        kept = await asyncio.to_thread(_write, self._store, list(taken.values()), known, caller.key_id or None)
        for place, result in zip(taken, kept, strict=True):
            results[place] = result
        return results

    async def _known(self, read: Sequence[Opinion]) -> tuple[Known, bool]:
        """Return what is known of the ids, and whether the store is still behind the calls before this moment."""
        mark = self._lag.written
        known = await asyncio.to_thread(_look, self._store, read)
        if not any(map(known.lacks, read)):
            return known, False
        until = time.monotonic() + WAIT_S
        while self._lag.stored < mark and time.monotonic() < until:  # noqa: ASYNC110 - another process moves it
            await asyncio.sleep(LOOK_S)
        behind = self._lag.stored < mark
        return await asyncio.to_thread(_look, self._store, read), behind

    def answering(
        self, answer: Callable[[Request, Caller], Awaitable[Any]], *, gives: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint: who may, the answer, and failures as ``{"error": …}``."""

        async def endpoint(request: Request) -> Response:
            caller = self._who(dict(request.headers.raw))
            if caller is None:
                return _refusal(401, NO_KEY)
            if gives and not caller.may_call:
                return _refusal(403, NO_FEEDBACK)
            try:
                return _json(await answer(request, caller))
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except DoorstepError as error:
                return _json(_error(error), _status(error))

        return endpoint


def feedback_of(store: Store, run_id: str | None, call_id: str | None) -> list[Feedback]:
    """Return what was said about a run and its calls, or about a call, in the order in which it was so."""
    if run_id is None:
        found = store.select(Feedback, call_id=call_id)
    else:
        calls = [call.call_id for call in store.select(Call, run_id=run_id)]
        found = store.select(Feedback, run_id=run_id) + store.select_in(Feedback, "call_id", calls)
    return sorted(found, key=lambda each: (each.at_us, each.feedback_id))


def _read(value: Any, run_id: str | None) -> Opinion | BadInput:
    try:
        return opinions.read(value, run_id)
    except BadInput as error:
        return error


def _look_right(missing: Sequence[str], opinion: Opinion) -> bool:
    """Runs are named by clients, calls by us."""
    return all(CALL_ID.fullmatch(each) for each in missing if each != opinion.run_id)


def _look(store: Store, read: Sequence[Opinion]) -> Known:
    calls = store.select_in(Call, "call_id", {call_id for opinion in read for call_id in opinion.call_ids})
    run_of = {call.call_id: call.run_id for call in calls}
    named = {opinion.run_id for opinion in read if opinion.run_id is not None and opinion.call_id is None}
    of_runs = store.select_in(Call, "run_id", named | {run_id for run_id in run_of.values() if run_id is not None})
    counts = Counter(call.run_id for call in of_runs)
    alone = frozenset(call_id for call_id, run_id in run_of.items() if run_id is not None and counts[run_id] == 1)
    return Known(run_of, alone, store.known(Run, named) | {run_id for run_id in named if counts[run_id]})


def _write(store: Store, read: Sequence[Opinion], known: Known, key_id: str | None) -> list[Any]:
    """Write opinions in one transaction; one that another request writes at this moment is found on a second look."""
    now_us = ids.now_us()
    named = [(opinion, _feedback_id(opinion, key_id), now_us + place) for place, opinion in enumerate(read)]
    try:
        return _write_new(store, named, known, key_id)
    except StoreError:
        return _write_new(store, named, known, key_id)


def _write_new(store: Store, named: Sequence[tuple[Opinion, str, int]], known: Known, key_id: str | None) -> list[Any]:
    stored = {row.feedback_id: row for row in store.select_in(Feedback, "feedback_id", {name for _, name, _ in named})}
    new: list[Feedback | Grade] = []
    results: list[Any] = []
    for opinion, feedback_id, now_us in named:
        at_us = now_us if opinion.at is None else opinions.us_of(opinion.at)
        graded = opinions.graded_run(opinion, known.run_of, known.alone)
        row, grade = opinions.rows(opinion, feedback_id=feedback_id, at_us=at_us, graded=graded, key_id=key_id)
        before = stored.get(feedback_id)
        if before is not None and not _same(before, row, opinion):
            results.append(Conflict(f"id {opinion.id!r} was used for other feedback; what is said anew needs a new id"))
            continue
        if before is None:
            stored[feedback_id] = row
            new += [row] if grade is None else [row, grade]
        results.append(_shown(before or row) | {"grades": None if grade is None else grade.run_id})
    store.add(*new)
    return results


def _same(before: Feedback, row: Feedback, opinion: Opinion) -> bool:
    """Tell whether it is the same opinion; the moment counts where it was said, and deleted content is not compared."""
    value = row.value if before.value is not None else None
    at_us = before.at_us if opinion.at is None else row.at_us
    return before == msgspec.structs.replace(row, at_us=at_us, value=value)


def _feedback_id(opinion: Opinion, key_id: str | None) -> str:
    """Return a new id, or the one that the sender's own id always leads to."""
    if opinion.id is None:
        return ids.new_id("feedback")
    return f"feedback_{ids.digest([key_id, opinion.id])[:26]}"


def _shown(row: Feedback) -> dict[str, Any]:
    moment = datetime.fromtimestamp(row.at_us / 1_000_000, UTC)
    return {
        "id": row.feedback_id,
        "at": moment.isoformat(),
        "run_id": row.run_id,
        "call_id": row.call_id,
        "kind": row.kind,
        "name": row.name,
        "value": row.value,
        "source": row.source,
    }


async def _body(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise BadInput("body", f"it is larger than {BODY_BYTES // 1000} KB")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("body", f"give one JSON object, or a list of them ({error})") from None


def _status(error: Exception) -> int:
    match error:
        case NotFound():
            return 404
        case Conflict():
            return 409
        case UsageError():
            return 400
    log.error("feedback was not kept: %s", error)
    return 503


def _error(error: Exception) -> Any:
    param = error.where if isinstance(error, BadInput) else None
    return msgspec.json.decode(openai_chat.error(_status(error), str(error), param=param))


def _refusal(status: int, message: str) -> Response:
    return Response(openai_chat.error(status, message), status, media_type="application/json")


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")

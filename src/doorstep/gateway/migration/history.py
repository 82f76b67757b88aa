"""What happened elsewhere as rows of the record, and the way of these rows into the store.

Their ids follow from the ids that they had, so that what is there already is not written again. Runs and calls say in
their gaps that they were ``imported``; exact token ids are known of none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway import records
from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects import openai_chat
from doorstep.store import Store, schema
from doorstep.types import Record
from doorstep.value.prices import UNKNOWN, Price

IMPORTED = "imported"
NO_IDS = "no_token_ids"
MOST = 10**15  # what a count may be: more is none, and no database holds it
BATCH = 500  # entries in one transaction


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What one line becomes: rows, the first of which stands for it, or why it can be none.

    ``joined``: it was read into the rows of another line.
    """

    where: str
    rows: Sequence[Record] = ()
    blobs: Mapping[str, bytes] = {}
    why: str | None = None
    joined: bool = False


class Refused(msgspec.Struct, frozen=True):
    """A line that cannot be used."""

    line: str
    why: str


class Report(msgspec.Struct, kw_only=True):
    """What became of the lines. ``joined`` are those that were read into the rows of others."""

    read: int = 0
    added: int = 0
    known: int = 0
    joined: int = 0
    refused: list[Refused] = []


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One model call as another program kept it, in OpenAI's words. ``answer`` is the assistant's message."""

    call_id: str
    run_id: str | None
    upstream_id: str
    requested_model: str
    model: str
    provider: str
    messages: list[dict[str, Any]]
    answer: dict[str, Any] | None
    settings: dict[str, Any] = {}  # the rest of the request: sampling, tools
    usage: dict[str, Any] | None = None
    finish_reason: str = "stop"
    started_us: int
    first_us: int | None = None
    ended_us: int
    error: str | None = None
    cost_microusd: int | None = None
    customer: str | None = None


def imported_id(kind: str, program: str, key: str) -> str:
    """Return the id that something of another program always gets."""
    return f"{kind}_{ids.digest([program, key])[:26]}"


def call_rows(said: Said) -> tuple[list[Record], dict[str, bytes]]:
    """Return the rows of a call, itself first, and its bodies."""
    body = {"model": said.requested_model, "messages": said.messages, **said.settings}
    capture = Capture(
        call_id=said.call_id,
        run_id=said.run_id,
        dialect=openai_chat.NAME,
        requested_model=text(said.requested_model),
        served_model=text(said.model),
        provider=text(said.provider),
        adapter=None,
        stream=False,
        started_us=said.started_us,
        first_us=said.first_us,
        ended_us=max(said.ended_us, said.started_us),
        status=200 if said.error is None else 500,
        error=said.error,
        request=ids.canonical(body),
        response=b"" if said.answer is None else ids.canonical(_answer(said)),
        customer=said.customer,
        upstream_id=said.upstream_id,
        gaps=[IMPORTED],
    )
    rows = records.rows_of(capture, lambda _call, _seconds: _price(said))
    return [rows.call, *rows.nodes], rows.blobs


def write(store: Store, entries: Iterable[Entry]) -> Report:
    """Write what is not there yet, batch after batch; stopped, the same again goes on."""
    report = Report()
    for batch in _batches(entries):
        _write(store, batch, report)
    return report


def whole(value: Any, where: str) -> int:
    """Return a count or a number of milliseconds; ``BadInput`` for what can be none."""
    try:
        number = int(value or 0)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < MOST:
        raise BadInput(where, f"{str(value)[:40]} is no count")
    return number


def text(value: Any) -> str:
    """Return a text as every database takes it."""
    return str(value).replace("\0", "\ufffd")


def _write(store: Store, batch: Sequence[Entry], report: Report) -> None:
    rows: dict[tuple[type[Record], str], Record] = {}
    for row in (row for entry in batch for row in entry.rows):
        rows.setdefault((type(row), schema.key_of(row)[0]), row)  # a later call repeats the messages of an earlier one
    known = {
        (kind, key)
        for kind in {kind for kind, _ in rows}
        for key in store.known(kind, [key for one, key in rows if one is kind])
    }
    blobs = {digest: body for entry in batch for digest, body in entry.blobs.items()}
    new = [row for key, row in rows.items() if key not in known]
    if new:
        store.add(*new, blobs=blobs)
    for entry in batch:
        report.read += 1
        if entry.why is not None:
            report.refused.append(Refused(entry.where, entry.why))
        elif entry.joined:
            report.joined += 1
        elif (key := (type(entry.rows[0]), schema.key_of(entry.rows[0])[0])) in known:
            report.known += 1
        else:
            known.add(key)  # the same line twice in one file
            report.added += 1


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    each = iter(entries)
    while batch := list(islice(each, BATCH)):
        yield batch


def _answer(said: Said) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": said.upstream_id,
        "object": "chat.completion",
        "created": said.ended_us // 1_000_000,
        "model": said.model,
        "choices": [{"index": 0, "message": said.answer, "finish_reason": said.finish_reason}],
    }
    return answer if said.usage is None else answer | {"usage": said.usage}


def _price(said: Said) -> Price:
    return UNKNOWN if said.cost_microusd is None else Price(said.cost_microusd, IMPORTED, None)

"""Rows that TensorZero kept in ClickHouse or Postgres, exported as JSONL, as runs, calls and feedback.

An episode is a run, an inference a call. Which table a row is from follows from its columns. Feedback may come before
what it is about, and tokens are in rows of their own (``ModelInference``), so that the files are read twice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway import opinions
from doorstep.gateway.migration import history
from doorstep.gateway.migration.files import Line, listing, plain
from doorstep.gateway.migration.history import Entry, Said, imported_id
from doorstep.store import Store
from doorstep.types import Call, Feedback, GradeSource, Mode, Record, Run, RunStatus

PROGRAM = "tensorzero"
CUSTOMER_TAGS = ("customer", "customer_id", "user_id")
FINISHES = {"tool_call": "tool_calls", "stop_sequence": "stop", "length": "length", "content_filter": "content_filter"}
SAMPLING = ("temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "reasoning_effort")


class Episode(msgspec.Struct):
    """What is to be known of an episode before its run can be written."""

    first: str  # inferences, whose ids sort by time
    last: str
    function: str
    variant: str
    task_digest: str
    ended_us: int
    count: int = 1
    mixed: bool = False  # more than one function or variant


class Model(msgspec.Struct):
    """What the model calls of one inference add up to."""

    name: str
    provider: str
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cached_tokens: int | None = 0  # of the input, where it was said
    cost_microusd: int | None = 0
    finish_reason: str | None = None


class Index(msgspec.Struct):
    """What the first reading finds."""

    episodes: dict[str, Episode] = {}
    episode_of: dict[str, str] = {}  # by inference
    models: dict[str, Model] = {}  # by inference


def entries(read: Callable[[], Iterable[Line]], store: Store) -> Iterator[Entry]:
    """Yield what each line becomes. ``read`` gives the lines from the beginning; it is called twice."""
    index = _index(read())
    for line in read():
        if line.error is not None:
            yield Entry(where=line.where, why=line.error)
            continue
        try:
            yield _entry(line, index, store)
        except BadInput as error:
            yield Entry(where=line.where, why=f"{error.where}: {error.why}")


def _index(lines: Iterable[Line]) -> Index:
    index = Index()
    for line in lines:
        row = line.value
        try:
            if _is_model_inference(row):
                _note_model(index, row)
            elif _is_inference(row):
                _note_inference(index, row)
        except BadInput:
            continue  # it is told when it is read again
    return index


def _is_model_inference(row: Mapping[str, Any]) -> bool:
    """Newer ones have the function and the output too."""
    return "model_provider_name" in row and "inference_id" in row and "batch_id" not in row


def _is_inference(row: Mapping[str, Any]) -> bool:
    return "function_name" in row and "output" in row and "dataset_name" not in row


def _note_inference(index: Index, row: Mapping[str, Any]) -> None:
    inference, episode = _uuid(row, "id"), _uuid(row, "episode_id")
    function, variant = _text(row, "function_name"), _text(row, "variant_name")
    digest, ended_us = ids.digest(plain(row.get("input"))), _said(row, inference, episode, None).ended_us
    index.episode_of[inference] = episode
    known = index.episodes.get(episode)
    if known is None:
        index.episodes[episode] = Episode(inference, inference, function, variant, digest, ended_us)
        return
    known.count += 1
    known.mixed = known.mixed or (function, variant) != (known.function, known.variant)
    known.ended_us = max(known.ended_us, ended_us)
    if inference < known.first:
        known.first, known.function, known.variant, known.task_digest = inference, function, variant, digest
    known.last = max(known.last, inference)


def _note_model(index: Index, row: Mapping[str, Any]) -> None:
    """Add a model call's tokens to its inference; the last model is the one that answered."""
    inference = _uuid(row, "inference_id")
    before = index.models.get(inference, Model("", ""))
    index.models[inference] = Model(
        name=str(row.get("model_name")),
        provider=str(row["model_provider_name"]),
        input_tokens=_sum(before.input_tokens, row.get("input_tokens")),
        output_tokens=_sum(before.output_tokens, row.get("output_tokens")),
        cached_tokens=_sum(before.cached_tokens, row.get("provider_cache_read_input_tokens")),
        cost_microusd=_sum(before.cost_microusd, _microusd(row)),
        finish_reason=row.get("finish_reason") or before.finish_reason,
    )


def _entry(line: Line, index: Index, store: Store) -> Entry:
    row = line.value
    if _is_model_inference(row):
        for name in ("input_tokens", "output_tokens", "provider_cache_read_input_tokens"):
            history.whole(row.get(name), name)
        _microusd(row)
        if _uuid(row, "inference_id") not in index.episode_of:
            raise BadInput("inference_id", "its inference is not among the rows")
        return Entry(where=line.where, joined=True)
    if _is_inference(row):
        return _inference(line.where, row, index)
    if "value" in row and ("target_id" in row or "inference_id" in row):
        return _feedback(line.where, row, index, store)
    if "function_name" in row and "output" not in row:
        raise BadInput("output", "it is missing; Postgres has it in a table of its own, to be joined by id")
    raise BadInput("columns", "no row of an inference or of feedback")


# Inferences


def _inference(where: str, row: Mapping[str, Any], index: Index) -> Entry:
    inference, episode_id = _uuid(row, "id"), _uuid(row, "episode_id")
    said = _said(row, inference, episode_id, index.models.get(inference))
    episode = index.episodes[episode_id]
    rows, blobs = history.call_rows(said)
    if inference == episode.last:
        rows.append(_run(episode_id, episode, row))
    return Entry(where=where, rows=rows, blobs=blobs)


def _said(row: Mapping[str, Any], inference: str, episode_id: str, model: Model | None) -> Said:
    started_us = _us(row, inference)
    first_ms = row.get("ttft_ms")
    usage: dict[str, Any] | None = None
    if model is not None and model.input_tokens is not None and model.output_tokens is not None:
        total = model.input_tokens + model.output_tokens
        usage = {
            "prompt_tokens": model.input_tokens,
            "completion_tokens": model.output_tokens,
            "total_tokens": total,
        }
        if model.cached_tokens is not None and model.cached_tokens <= model.input_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": model.cached_tokens}
    answer = _answer(plain(row["output"]))
    finish = FINISHES.get(str(model and model.finish_reason), "tool_calls" if "tool_calls" in answer else "stop")
    function, variant = _text(row, "function_name"), _text(row, "variant_name")
    return Said(
        call_id=imported_id("call", PROGRAM, inference),
        run_id=imported_id("run", PROGRAM, episode_id),
        upstream_id=inference,
        requested_model=f"tensorzero::function_name::{function}",
        model=model.name if model else variant,
        provider=model.provider if model else PROGRAM,
        messages=_messages(plain(row.get("input"))),
        answer=answer,
        settings=_settings(row),
        usage=usage,
        finish_reason=finish,
        started_us=started_us,
        first_us=None if first_ms is None else started_us + history.whole(first_ms, "ttft_ms") * 1000,
        ended_us=_ended_us(row),
        cost_microusd=model.cost_microusd if model else None,
        customer=_customer(row),
    )


def _run(episode_id: str, episode: Episode, last: Mapping[str, Any]) -> Run:
    output = plain(last["output"])
    is_json = isinstance(output, dict) and "raw" in output
    return Run(
        run_id=imported_id("run", PROGRAM, episode_id),
        workflow=episode.function,
        variant=episode.variant,
        mode=Mode.PROD,
        task_id=episode_id,
        task_digest=episode.task_digest,
        status=RunStatus.OK,
        started_us=_us(last, episode.first),
        ended_us=max(episode.ended_us, _us(last, episode.first)),
        customer=_customer(last),
        output=output.get("parsed") if is_json else _answer(output).get("content"),
        gaps=[history.IMPORTED, history.NO_IDS, *(["several_variants"] if episode.mixed else [])],
    )


def _messages(given: Any) -> list[dict[str, Any]]:
    """Return TensorZero's input as OpenAI's messages."""
    if not isinstance(given, dict):
        raise BadInput("input", "it is no object with messages")
    messages: list[dict[str, Any]] = []
    if given.get("system") not in (None, "", {}):
        messages.append({"role": "system", "content": _as_text(given["system"])})
    if not isinstance(given.get("messages", []), list):
        raise BadInput("input", "its messages are no list")
    for message in given.get("messages", []):
        if not isinstance(message, dict) or "role" not in message:
            raise BadInput("input", "a message has no role")
        messages += _message(message["role"], message.get("content"))
    return messages


def _message(role: str, content: Any) -> Iterator[dict[str, Any]]:
    """Yield one message, after the results of tools that it brought."""
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    blocks = [block if isinstance(block, dict) else {"type": "text", "text": str(block)} for block in listing(content)]
    results = [block for block in blocks if block.get("type") == "tool_result"]
    for block in results:
        yield {"role": "tool", "tool_call_id": block.get("id"), "content": _as_text(block.get("result"))}
    rest = [block for block in blocks if block.get("type") != "tool_result"]
    if not rest:
        return
    if role == "assistant":
        yield _answer(rest)
    elif all(block.get("type") in ("text", "template", "raw_text") for block in rest):
        yield {"role": role, "content": "\n".join(map(_text_of, rest))}
    else:
        yield {"role": role, "content": [_part(block) for block in rest]}


def _answer(output: Any) -> dict[str, Any]:
    """Return an output as the assistant's message."""
    if isinstance(output, dict):  # of a JSON function
        raw = output.get("raw")
        return {"role": "assistant", "content": _as_text(output.get("parsed")) if raw is None else str(raw)}
    if not isinstance(output, list):
        return {"role": "assistant", "content": _as_text(output)}
    blocks = [block for block in output if isinstance(block, dict)]
    texts = [_text_of(block) for block in blocks if block.get("type") in ("text", "template", "raw_text")]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts else None}
    calls = [_tool_call(block) for block in blocks if block.get("type") == "tool_call"]
    thoughts = [str(block.get("text")) for block in blocks if block.get("type") == "thought" and block.get("text")]
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message


def _tool_call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = block.get("raw_arguments") or block.get("arguments")
    function = {"name": block.get("raw_name") or block.get("name"), "arguments": _as_text(arguments)}
    return {"id": block.get("id"), "type": "function", "function": function}


def _text_of(block: Mapping[str, Any]) -> str:
    """Return a block's text; in a template that is what was put into it."""
    return _as_text(next((block[name] for name in ("text", "value", "arguments") if name in block), ""))


def _part(block: dict[str, Any]) -> dict[str, Any]:
    """Return a text as OpenAI's part; a picture or file stays as TensorZero names it."""
    return {"type": "text", "text": _text_of(block)} if block.get("type") in ("text", "template") else block


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling, tools and schema as OpenAI's request has them."""
    inference = plain(row.get("inference_params"))
    chat = inference.get("chat_completion") if isinstance(inference, dict) else None
    given = chat if isinstance(chat, dict) else {}
    found = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    if given.get("stop_sequences"):
        found["stop"] = given["stop_sequences"]
    legacy = plain(row.get("tool_params"))
    tools_given = legacy.get("tools_available") if isinstance(legacy, dict) else plain(row.get("dynamic_tools"))
    tools = [tool for each in listing(tools_given) if isinstance(tool := plain(each), dict)]
    if tools:
        names = ("name", "description", "parameters", "strict")
        functions = [{name: tool[name] for name in names if tool.get(name) is not None} for tool in tools]
        found["tools"] = [{"type": "function", "function": function} for function in functions]
    schema = plain(row.get("output_schema"))
    if isinstance(schema, dict) and schema:
        found["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    return found


# Feedback


def _feedback(where: str, row: Mapping[str, Any], index: Index, store: Store) -> Entry:
    target = _uuid(row, "target_id" if "target_id" in row else "inference_id")
    run_id, call_id, graded = _target(target, index, store)
    kind, name, value = _opinion(row)
    feedback_id = _uuid(row, "id")
    feedback = Feedback(
        feedback_id=imported_id("feedback", PROGRAM, feedback_id),
        at_us=_us(row, feedback_id),
        run_id=run_id,
        call_id=call_id,
        kind=kind,
        name=history.text(name),
        value=value,
        source=GradeSource.HUMAN,
    )
    grade = opinions.grade_of(feedback, graded)
    rows: list[Record] = [feedback] if grade is None else [feedback, grade]
    return Entry(where=where, rows=rows)


def _target(target: str, index: Index, store: Store) -> tuple[str | None, str | None, str | None]:
    """Return the run or the call that feedback is about, and the run that it judges."""
    run_id, call_id = imported_id("run", PROGRAM, target), imported_id("call", PROGRAM, target)
    if target in index.episodes:
        return run_id, None, run_id
    if target in index.episode_of:
        episode = index.episode_of[target]
        alone = index.episodes[episode].count == 1
        return None, call_id, imported_id("run", PROGRAM, episode) if alone else None
    if store.get(Run, run_id) is not None:
        return run_id, None, run_id
    call = store.get(Call, call_id)
    if call is None:
        raise BadInput(
            "target_id", f"there is no inference or episode {target}, neither in these rows nor imported before"
        )
    alone = len(store.select(Call, run_id=call.run_id, limit=2)) == 1
    return None, call_id, call.run_id if alone else None


def _opinion(row: Mapping[str, Any]) -> tuple[str, str, Any]:
    """Return kind, name and value."""
    value = row["value"]
    if "metric_name" in row:
        name = _text(row, "metric_name")
        if isinstance(value, bool):
            return "boolean", name, value
        if isinstance(value, int | float):
            return "float", name, float(value)
        raise BadInput("value", "a metric is true, false or a number")
    if "target_id" in row:
        return "comment", "comment", _as_text(value)
    output = plain(value)
    if isinstance(output, list):
        message = _answer(output)
        output = message if "tool_calls" in message else message["content"]
    return "demonstration", "demonstration", output["parsed"] if _is_json_output(output) else output


def _is_json_output(output: Any) -> bool:
    return isinstance(output, dict) and output.keys() == {"raw", "parsed"}


# Columns


def _uuid(row: Mapping[str, Any], name: str) -> str:
    try:
        return str(UUID(str(row[name])))
    except (KeyError, ValueError):
        raise BadInput(name, f"{row.get(name)!r} is no UUID") from None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise BadInput(name, "it is missing")
    return history.text(value)


def _us(row: Mapping[str, Any], uuid: str) -> int:
    """Return when it was: a UUID of version 7 begins with its time."""
    number = UUID(uuid)
    if number.version == 7:
        return (number.int >> 80) * 1000
    given = row.get("timestamp") or row.get("created_at")
    try:
        return opinions.us_of(datetime.fromisoformat(str(given)))
    except ValueError:
        raise BadInput("timestamp", f"{given!r} is no time, and the id has none in it") from None


def _ended_us(row: Mapping[str, Any]) -> int:
    return _us(row, _uuid(row, "id")) + history.whole(row.get("processing_time_ms"), "processing_time_ms") * 1000


def _microusd(row: Mapping[str, Any]) -> int | None:
    """Return what a model call cost, which is in dollars there."""
    cost = row.get("cost")
    try:
        return None if cost is None else history.whole(round(Decimal(str(cost)) * 1_000_000), "cost")
    except (ArithmeticError, ValueError):
        raise BadInput("cost", f"{str(cost)[:40]!r} is no amount") from None


def _sum(before: int | None, more: Any) -> int | None:
    return None if before is None or more is None else before + history.whole(more, "tokens")


def _customer(row: Mapping[str, Any]) -> str | None:
    tags = plain(row.get("tags"))
    found = [tags[name] for name in CUSTOMER_TAGS if tags.get(name)] if isinstance(tags, dict) else []
    return history.text(found[0]) if found else None

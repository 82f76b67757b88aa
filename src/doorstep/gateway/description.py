"""The OpenAPI description of Doorstep's own addresses, made of the values that these read and write.

What is in the body of a model call belongs to its format, OpenAI's or Anthropic's, and a provider may take more than we
know of. So only what the gateway itself looks at is described there, and everything else is let in.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep import __version__
from doorstep.gateway.admin import Rotation
from doorstep.gateway.dialects import (
    anthropic_count,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_image_edits,
    openai_images,
    openai_responses,
    openai_speech,
    openai_transcription,
    openai_translation,
    openai_videos,
)
from doorstep.gateway.dialects.openai_videos import Video
from doorstep.gateway.keys import Terms
from doorstep.gateway.opinions import Opinion
from doorstep.types import Audit

PATH = "/openapi.json"
OPENAPI = "3.1.0"

Schema = Mapping[str, Any]
Content = Mapping[str, Schema]  # by media type
JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
BINARY: Schema = {"type": "string", "format": "binary"}
TEXT: Schema = {"type": "string"}
EVENT: Schema = {}  # as its format has it
NUMBER: Schema = {"type": "integer"}
ANYTHING: Schema = {"type": "object"}

_STATUSES = {
    400: "The request cannot work as it stands.",
    401: "No key that counts.",
    402: "A budget would be exceeded.",
    403: "The key may never do this.",
    404: "What it names does not exist.",
    409: "Its id was used for something else.",
    413: "The request is too large.",
    429: "Too much within a minute, here or at the provider.",
    500: "A mistake of ours.",
    502: "The provider failed.",
    503: "Who is needed for it is not there.",
    504: "The provider was too slow.",
}
_OF_CALLS = (400, 401, 402, 403, 404, 413, 429, 500, 502, 503, 504)
_OF_READING = (400, 401, 404)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one address: what it takes, what it answers with status 200, and with which others it fails."""

    method: Literal["get", "post", "patch", "delete"]
    path: str
    summary: str
    answer: Content
    takes: Content | None = None
    query: Mapping[str, Schema] = {}
    needs: bool = True  # its body
    fails: Sequence[int] = ()
    error: str = "Error"
    open: bool = False  # without a key


def routes() -> list[Route]:
    """Return the route to put at the root."""

    async def answer(_request: Request) -> Response:
        return Response(written(), media_type=JSON)

    return [Route(PATH, answer)]


@cache
def written() -> bytes:
    """Return the description as the text of a file."""
    return msgspec.json.format(msgspec.json.encode(description()), indent=1) + b"\n"


def description() -> dict[str, Any]:
    """Return the description."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Doorstep",
            "version": __version__,
            "summary": "Any model at one address, recorded to the token.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": dict(_failures()), "securitySchemes": _KEYS},
        "security": [{name: []} for name in _KEYS],
    }


def _described(operation: Operation) -> dict[str, Any]:
    steps = [step[1:-1] for step in operation.path.split("/") if step.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in steps]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    answer = {"description": "It worked.", "content": _content(operation.answer)}
    failures = {
        str(status): {"$ref": f"#/components/responses/{operation.error}{status}"} for status in operation.fails
    }
    described: dict[str, Any] = {"summary": operation.summary, "responses": {"200": answer} | failures}
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {"required": operation.needs, "content": _content(operation.takes)}
    if operation.open:
        described["security"] = []
    return described


def _failures() -> Iterator[tuple[str, Schema]]:
    """Yield each kind of failure once; operations refer to it."""
    for error, status in sorted({(each.error, status) for each in OPERATIONS for status in each.fails}):
        yield f"{error}{status}", {"description": _STATUSES[status], "content": _content({JSON: _ref(error)})}


def _content(content: Content) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in content.items()}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*required: str, **properties: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _data(schema: Schema) -> Schema:
    return _object("data", data=_list(schema))


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _is(value: str) -> Schema:
    return {"type": "string", "const": value}


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def _schemas() -> dict[str, Any]:
    made = msgspec.json.schema_components(
        [Terms, Rotation, Opinion, Video, Audit], ref_template="#/components/schemas/{name}"
    )[1]
    terms = made["Terms"]
    opinion = made["Opinion"]["properties"]
    return {
        **made,
        "Changes": {**terms, "description": "What is to change of a key; null takes a limit away.", "required": []},
        "Key": {
            **terms,
            "description": "A key as it may be shown; the key itself only when it is made.",
            "properties": {
                **terms["properties"], "id": TEXT, "created_us": NUMBER, "key": TEXT,
                "spent_day_microusd": NUMBER, "spent_month_microusd": NUMBER,
            },
            "required": ["id", "name", "role", "created_us"],
        },
        "Feedback": _object(
            "id", "at", "kind", "name", "value", "source",
            id=TEXT, at=TEXT, run_id=_or_null(TEXT), call_id=_or_null(TEXT), kind=TEXT, name=TEXT, value={},
            source=opinion["source"], grades=_or_null(TEXT),
        ),
        "Health": _object("status", status=TEXT),
        "Model": _object("id", "object", "owned_by", id=TEXT, object=_is("model"), owned_by=TEXT, display_name=TEXT),
        "Message": _object(
            "role", "content", role={"enum": ["user", "assistant"]}, content={"type": ["string", "array"]}
        ),
        "Error": _object(
            "error",
            error=_object("message", message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT)),
        ),
        "AnthropicError": _object(
            "type", "error", type=_is("error"), error=_object("type", "message", type=TEXT, message=TEXT)
        ),
    }  # fmt: skip


def _call(path: str, summary: str, takes: Schema, answer: Content, error: str = "Error", kind: str = JSON) -> Operation:
    """Return a model call."""
    return Operation(
        method="post", path=path, summary=summary, takes={kind: takes}, answer=answer, fails=_OF_CALLS, error=error
    )


_STREAM: Schema = {"type": ["boolean", "null"]}
_MESSAGES = {**_list(_ref("Message")), "minItems": 1}
_SOME: Schema = {"type": "integer", "minimum": 1}
_PICTURES: Content = {JSON: _data(ANYTHING), EVENTS: EVENT}
_TRANSCRIPT: Content = {JSON: ANYTHING, "text/plain": TEXT, EVENTS: EVENT}
_SOUND_IN = _object("model", "file", model=TEXT, file=BINARY)
_VIDEO: Content = {JSON: _ref("Video")}

_CALLS = (
    _call(
        openai_chat.PATH,
        "OpenAI chat completions",
        _object("model", "messages", model=TEXT, messages=_MESSAGES, stream=_STREAM),
        {JSON: _object("id", "choices", id=TEXT, choices=_list(ANYTHING)), EVENTS: EVENT},
    ),
    _call(
        openai_responses.PATH,
        "OpenAI Responses",
        _object("model", "input", model=TEXT, input={"type": ["string", "array"]}, stream=_STREAM),
        {JSON: _object("id", "output", id=TEXT, output=_list(ANYTHING)), EVENTS: EVENT},
    ),
    _call(
        openai_completions.PATH,
        "OpenAI's legacy completions",
        _object("model", "prompt", model=TEXT, prompt={"type": ["string", "array"]}, stream=_STREAM),
        {JSON: _object("id", "choices", id=TEXT, choices=_list(ANYTHING)), EVENTS: EVENT},
    ),
    _call(
        openai_embeddings.PATH,
        "OpenAI embeddings",
        _object("model", "input", model=TEXT, input={"type": ["string", "array"]}),
        {JSON: _data(ANYTHING)},
    ),
    _call(
        anthropic_messages.PATH,
        "Anthropic messages",
        _object("model", "messages", "max_tokens", model=TEXT, messages=_MESSAGES, max_tokens=_SOME, stream=_STREAM),
        {JSON: _object("id", "content", id=TEXT, content=_list(ANYTHING)), EVENTS: EVENT},
        "AnthropicError",
    ),
    _call(
        anthropic_count.PATH,
        "Anthropic's count of a request's tokens",
        _object("model", "messages", model=TEXT, messages=_MESSAGES),
        {JSON: _object("input_tokens", input_tokens=NUMBER)},
        "AnthropicError",
    ),
    _call(
        openai_images.PATH,
        "A picture from words",
        _object("model", "prompt", model=TEXT, prompt=TEXT),
        _PICTURES,
    ),
    _call(
        openai_image_edits.PATH,
        "A picture from pictures",
        _object("model", "prompt", "image", model=TEXT, prompt=TEXT, image=BINARY),
        _PICTURES,
        kind=FORM,
    ),
    _call(
        openai_speech.PATH,
        "Speech from words",
        _object("model", "input", "voice", model=TEXT, input=TEXT, voice=TEXT),
        {"audio/*": BINARY, EVENTS: EVENT},
    ),
    _call(openai_transcription.PATH, "Words from speech", _SOUND_IN, _TRANSCRIPT, kind=FORM),
    _call(openai_translation.PATH, "English words from speech", _SOUND_IN, _TRANSCRIPT, kind=FORM),
    _call(
        openai_videos.PATH,
        "Order a video",
        _object("model", "prompt", model=TEXT, prompt=TEXT, seconds={"type": ["string", "number"]}, size=TEXT),
        _VIDEO,
    ),
    _call(f"{openai_videos.PATH}/{{video_id}}/remix", "Order a video made from another", _object("prompt", prompt=TEXT),
          _VIDEO),
)  # fmt: skip

_OPINIONS: Schema = {"anyOf": [_ref("Opinion"), {**_list(_ref("Opinion")), "maxItems": 1000}]}
_KEPT: Schema = {"anyOf": [_ref("Feedback"), _data({"anyOf": [_ref("Feedback"), _ref("Error")]})]}
_OF_ADMIN = (400, 401, 403, 404, 503)

OPERATIONS = (
    *_CALLS,
    Operation(
        method="get",
        path="/v1/models",
        summary="The models that have a name in the settings",
        answer={JSON: _data(_ref("Model"))},
        fails=(401,),
    ),
    Operation(
        method="get",
        path="/v1/models/{model}",
        summary="One model",
        answer={JSON: _ref("Model")},
        fails=(401, 404),
    ),
    Operation(
        method="get",
        path=openai_videos.PATH,
        summary="The videos of this key",
        query={
            "after": TEXT,
            "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            "order": {"enum": ["asc", "desc"]},
        },
        answer={JSON: _object("data", "has_more", data=_list(_ref("Video")), has_more={"type": "boolean"})},
        fails=_OF_READING,
    ),
    Operation(
        method="get",
        path=f"{openai_videos.PATH}/{{video_id}}",
        summary="How far a video is",
        answer=_VIDEO,
        fails=_OF_READING,
    ),
    Operation(
        method="get",
        path=f"{openai_videos.PATH}/{{video_id}}/content",
        summary="A video's file",
        query={"variant": {"enum": ["video", "thumbnail", "spritesheet"]}},
        answer={"video/mp4": BINARY, "image/*": BINARY},
        fails=(*_OF_READING, 502, 504),
    ),
    Operation(
        method="delete",
        path=f"{openai_videos.PATH}/{{video_id}}",
        summary="Delete a video that has ended",
        answer={JSON: _object("id", "deleted", id=TEXT, deleted={"const": True})},
        fails=(*_OF_READING, 403),
    ),
    Operation(
        method="post",
        path="/feedback",
        summary="Say what a run or a call was worth; one opinion, or up to 1,000",
        takes={JSON: _OPINIONS},
        answer={JSON: _KEPT},
        fails=(400, 401, 403, 404, 409, 503),
    ),
    Operation(
        method="get",
        path="/feedback",
        summary="What was said about a run or a call",
        query={"run_id": TEXT, "call_id": TEXT},
        answer={JSON: _data(_ref("Feedback"))},
        fails=(400, 401, 503),
    ),
    Operation(
        method="get",
        path="/admin/keys",
        summary="The keys, with what they may and have spent",
        answer={JSON: _object("keys", keys=_list(_ref("Key")))},
        fails=(401, 403, 503),
    ),
    Operation(
        method="post",
        path="/admin/keys",
        summary="Make a key",
        takes={JSON: _ref("Terms")},
        answer={JSON: _ref("Key")},
        fails=_OF_ADMIN,
    ),
    Operation(
        method="patch",
        path="/admin/keys/{key_id}",
        summary="Change a key",
        takes={JSON: _ref("Changes")},
        answer={JSON: _ref("Key")},
        fails=_OF_ADMIN,
    ),
    Operation(
        method="post",
        path="/admin/keys/{key_id}/rotate",
        summary="Give a key a new secret",
        takes={JSON: _ref("Rotation")},
        needs=False,
        answer={JSON: _object("id", "key", id=TEXT, key=TEXT, grace_s={"type": "number"})},
        fails=_OF_ADMIN,
    ),
    Operation(
        method="delete",
        path="/admin/keys/{key_id}",
        summary="Revoke a key",
        answer={JSON: _object("id", "revoked", id=TEXT, revoked={"const": True})},
        fails=_OF_ADMIN,
    ),
    Operation(
        method="get",
        path="/admin/log",
        summary="Who changed what; the newest 1,000 changes",
        answer={JSON: _object("entries", entries=_list(_ref("Audit")))},
        fails=(401, 403, 503),
    ),
    Operation(
        method="get",
        path="/healthz",
        summary="Whether every configured part is ready",
        answer={JSON: _ref("Health")},
        fails=(503,),
        error="Health",
        open=True,
    ),
    Operation(
        method="get",
        path="/metrics",
        summary="Figures for Prometheus",
        answer={"text/plain": TEXT},
        fails=(401,),
    ),
    Operation(method="get", path="/", summary="Where things are", answer={JSON: ANYTHING}, open=True),
    Operation(method="get", path=PATH, summary="This description", answer={JSON: ANYTHING}, open=True),
)

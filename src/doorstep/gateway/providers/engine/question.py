"""What a request asks of our own models, in the words of their templates and of the engine's sampler.

What our models do not serve is refused by the name that the client's dialect has for it.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doorstep.engine.api import Grammar, ModelInfo, SampleParams
from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    Block,
    ChatRequest,
    Image,
    Message,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from doorstep.renderers.answers import MarkedReader, Reader
from doorstep.renderers.grammar import json_schema

if TYPE_CHECKING:
    from doorstep.renderers.chat import ChatRenderer
    from doorstep.renderers.tools import Schemas

# What the dialects call our fields, where it is not what OpenAI chat calls them.
_WIRE: Mapping[str, Mapping[str, str]] = {
    "openai.responses": {"messages": "input", "response_format": "text.format", "verbosity": "text.verbosity",
                         "reasoning_effort": "reasoning"},
    "openai.completions": {"messages": "prompt"},
    "anthropic.messages": {"response_format": "output_config.format", "reasoning_effort": "thinking"},
}  # fmt: skip
_OBJECT: Mapping[str, Any] = {"type": "object"}


class Question:
    """A request to the model of ``info``, rendered by ``renderer``; ``BadInput`` for what it does not serve.

    ``images`` are the pictures in it, in their order; ``tools`` are the schemas of those that may be called.
    """

    def __init__(self, request: ChatRequest, dialect: str, renderer: "ChatRenderer", info: ModelInfo) -> None:
        self._request = request
        self._dialect = dialect
        self._renderer = renderer
        self._info = info
        self.images: list[bytes] = []
        offered = self._offered()
        self.tools: Schemas = {tool.name: {**_OBJECT, **(tool.parameters or {})} for tool in offered}
        if request.verbosity:
            raise self._refused("verbosity")
        settings = self._settings(request.reasoning)
        messages = [said for place, message in enumerate(request.messages) for said in self._said(message, place)]
        self.prompt = renderer.prompt(messages, [_function(tool) for tool in offered], **settings)

    def params(self, prompt: Sequence[int]) -> SampleParams:
        """Return how to sample. ``prompt`` is what the engine gets, with room for images."""
        request, room = self._request, self._info.max_context - len(prompt)
        if room < 1:
            raise BadInput(
                self._wire("messages"),
                f"they are {len(prompt)} tokens long; {self._info.name} holds {self._info.max_context} with the answer",
            )
        return SampleParams(
            max_tokens=min(room, request.max_tokens or room),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or -1,
            top_p=1.0 if request.top_p is None else request.top_p,
            min_p=request.min_p or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=self._biases(),
            seed=request.seed,
            stop=[[token] for token in self._renderer.stop_ids],
            top_logprobs=request.top_logprobs or 0,
            grammar=self._grammar(),
        )

    def reader(self) -> Reader:
        """Return what reads an answer."""
        return self._renderer.reader(self.prompt, self.tools)

    def _offered(self) -> list[Tool]:
        """Return the tools that may be called; one that is to be called is the only one."""
        choice, tools = self._request.tool_choice, self._request.tools
        if choice is None or choice.mode == "auto":
            return tools
        if choice.mode == "none":
            return []
        found = [tool for tool in tools if choice.mode == "required" or tool.name == choice.name]
        if not found:
            raise BadInput(self._wire("tool_choice"), "there is no such tool in tools")
        return found

    def _grammar(self) -> Grammar | None:
        """Return what the answer must look like, where that is said."""
        request, wanted = self._request, self._request.answer_format
        must_call = request.tool_choice is not None and request.tool_choice.mode in ("required", "one")
        strict = any(tool.strict for tool in request.tools if tool.name in self.tools)
        if not (must_call or strict or wanted):
            return None
        answer = None if wanted is None else _OBJECT if wanted.schema is None else wanted.schema
        if answer is not None and not self.tools and not self._renderer.thinks:
            return Grammar(kind="json_schema", text=json_schema(answer))
        several = request.parallel_tool_calls is not False
        held = {tool.name: self.tools[tool.name] if must_call or tool.strict else _OBJECT for tool in self._offered()}
        text = self._renderer.grammar(self.prompt, held, must_call=must_call, several=several, answer=answer)
        return Grammar(kind="lark", text=text)

    def _biases(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for word, bias in (self._request.logit_bias or {}).items():
            if not (word.isascii() and word.isdigit() and int(word) < self._info.vocabulary):
                raise BadInput(
                    "logit_bias", f"{word[:20]!r} is no id of the {self._info.vocabulary} tokens of the model"
                )
            found[int(word)] = bias
        return found

    def _settings(self, reasoning: Reasoning | None) -> dict[str, Any]:
        """Return what the template is told of thinking; a budget is no more to it than that it may."""
        if reasoning is None:
            return {}
        renderer = self._renderer
        if reasoning.off:
            if renderer.thinks and not renderer.stills:
                raise BadInput(self._wire("reasoning_effort"), f"{self._info.name} always thinks; leave it out")
            return {"enable_thinking": False, "thinking": False}
        if not renderer.thinks:
            raise self._refused("reasoning_effort")
        effort = {"reasoning_effort": reasoning.effort} if renderer.efforts and reasoning.effort else {}
        return {"enable_thinking": True, "thinking": True, **effort}

    # Messages

    def _said(self, message: Message, place: int) -> list[dict[str, Any]]:
        """Return a message as templates take it; each result of a tool is one of its own."""
        if message.role == "tool":
            return [self._result(block, place, at) for at, block in enumerate(message.blocks)]
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: list[str] = []
        for at, block in enumerate(message.blocks):
            match block:
                case Text() | Refusal():
                    parts.append({"type": "text", "text": block.text})
                case ToolCall():
                    function = {"name": block.name, "arguments": block.arguments}
                    calls.append({"id": block.id, "type": "function", "function": function})
                case Thinking():
                    thoughts.append(block.text)
                case _:
                    parts.append(self._image(block, place, at))
        said: dict[str, Any] = {"role": message.role, "content": parts}
        if calls:
            said["tool_calls"] = calls
        if thought := "".join(thoughts):
            said["reasoning_content"] = thought
        return [said]

    def _result(self, block: Block, place: int, at: int) -> dict[str, Any]:
        assert isinstance(block, ToolResult)
        for part in block.content:
            if not isinstance(part, Text):
                raise self._unfit(part, place, at)
        text = "".join(part.text for part in block.content if isinstance(part, Text))
        content = f"Error: {text}" if block.is_error else text
        return {"role": "tool", "tool_call_id": block.call_id, "name": self._called(block), "content": content}

    def _called(self, result: ToolResult) -> str | None:
        """Return the name of the tool that a result is of."""
        blocks = [block for message in self._request.messages for block in message.blocks]
        calls = [block.name for block in blocks if isinstance(block, ToolCall) and block.id == result.call_id]
        return calls[-1] if calls else None

    def _image(self, block: Block, place: int, at: int) -> dict[str, Any]:
        if not isinstance(block, Image) or not self._info.vision:
            raise self._unfit(block, place, at)
        if block.data is None:
            raise BadInput(
                self._place(place, at), "the local model takes pictures by their data, not by an address or id"
            )
        try:
            self.images.append(base64.b64decode(block.data, validate=True))
        except binascii.Error:
            raise BadInput(self._place(place, at), "not base64") from None
        return {"type": "image"}

    # How refusals name what they refuse

    def _refused(self, name: str) -> BadInput:
        return BadInput(self._wire(name), "not served by the local model; leave it out or use a hosted model")

    def _unfit(self, block: Any, place: int, at: int) -> BadInput:
        kind = type(block).__name__.lower()
        return BadInput(self._place(place, at), f"the local model takes text parts here, not {kind!r}")

    def _place(self, place: int, at: int) -> str:
        """Return where a part is; in other dialects messages and parts are not the canonical ones, place by place."""
        where = self._wire("messages")
        return f"{where}[{place}].content[{at}]" if self._dialect == "openai.chat" else where

    def _wire(self, name: str) -> str:
        return _WIRE.get(self._dialect, {}).get(name, name)


class Continuation(Question):
    """A text or token ids that the model goes on with, without roles."""

    def __init__(
        self, prompt: str | list[int], request: ChatRequest, dialect: str, renderer: "ChatRenderer", info: ModelInfo
    ) -> None:
        self._request = request
        self._dialect = dialect
        self._renderer = renderer
        self._info = info
        self.images = []
        self.tools = {}
        self.prompt = renderer.text(prompt) if isinstance(prompt, str) else prompt

    def reader(self) -> Reader:
        """Return what reads an answer: all of it is words."""
        return MarkedReader(None, None, {})


def _function(tool: Tool) -> dict[str, Any]:
    about = {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or _OBJECT}
    return {"type": "function", "function": about}

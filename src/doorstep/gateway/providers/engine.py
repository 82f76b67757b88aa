"""Our own engine as a provider: renders the messages, samples, and traces exact ids with their log-probabilities.

The engine stops on token ids; stop *strings* are looked for here, in the text. What our models do not serve is refused
by the name that the client's dialect has for it.
"""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from doorstep.engine.api import Engine, Finished, ModelInfo, SampleParams, Token
from doorstep.errors import BadInput, EngineError
from doorstep.gateway.chat import (
    ChatRequest,
    Delta,
    End,
    Event,
    Message,
    Reason,
    Refusal,
    Sampled,
    SampledText,
    Text,
    ToolCall,
    ToolResult,
    Trace,
    Usage,
)
from doorstep.gateway.dialects import anthropic_count
from doorstep.gateway.dialects.base import ChatDialect
from doorstep.gateway.providers.base import Answer, Ask, Key, content_type, from_generator
from doorstep.value.prices import LOCAL

if TYPE_CHECKING:
    from doorstep.renderers.chat import ChatRenderer

AdapterFor = Callable[[str], Awaitable[str]]
CpuClock = Callable[[], Awaitable[float]]

# What the dialects call our fields, where it is not what OpenAI chat calls them.
_WIRE: Mapping[str, Mapping[str, str]] = {
    "openai.responses": {"messages": "input", "response_format": "text.format", "verbosity": "text.verbosity",
                         "reasoning_effort": "reasoning"},
    "anthropic.messages": {"response_format": "output_config.format", "reasoning_effort": "thinking"},
}  # fmt: skip


class EngineProvider:
    """Answers for the base model of an engine and for the adapters on it.

    ``adapter_for`` has the engine hold the checkpoint at a tinker:// path and returns the adapter's name. ``cpu`` gives
    the CPU seconds used so far by all that answering takes.
    """

    name = LOCAL
    keys: tuple[Key, ...] = ()

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        renderer: "ChatRenderer",
        adapter_for: AdapterFor,
        cpu: CpuClock | None = None,
    ) -> None:
        self.info = info
        self._engine = engine
        self._renderer = renderer
        self._adapter_for = adapter_for
        self._meter = None if cpu is None else _CpuMeter(cpu)

    async def answer(self, ask: Ask) -> Answer:
        """Render and begin to sample, or count what was rendered."""
        dialect = ask.dialect
        if dialect.NAME == anthropic_count.NAME:
            return Answer(body=anthropic_count.write(len(self._prompt(anthropic_count.count(ask.body), dialect.NAME))))
        if not isinstance(dialect, ChatDialect):
            raise BadInput("model", f"{ask.head.model} is a chat model; it does not answer {dialect.NAME}")
        began = time.monotonic()
        request = dialect.read(ask.body)
        prompt = self._prompt(request, dialect.NAME)
        params = self._params(request, len(prompt), dialect.NAME)
        adapter = None if ask.adapter is None else await self._adapter_for(ask.adapter)
        trace = Trace(
            prompt=prompt,
            samples=[Sampled() for _ in range(request.n)],
            policy=ask.adapter or self.info.digest,
            tokenizer_digest=self.info.tokenizer_digest,
        )
        events = self._events(adapter, params, request, trace, began)
        model = ask.adapter or self.info.name
        pieces = dialect.write(events, head=ask.head, answer_id=ask.call_id, model=model, request=request)
        body = _closing(cast("AsyncGenerator[bytes]", pieces), events)
        return Answer(body=from_generator(body), content_type=content_type(ask.head), trace=trace)

    async def close(self) -> None:
        """The engine belongs to the server."""

    def _prompt(self, request: ChatRequest, dialect: str) -> list[int]:
        _check(request, dialect)
        return self._renderer.prompt(_rendered(request.messages, dialect))

    def _params(self, request: ChatRequest, prompt: int, dialect: str) -> SampleParams:
        room = self.info.max_context - prompt
        if room < 1:
            raise BadInput(
                _wire("messages", dialect),
                f"they are {prompt} tokens long; {self.info.name} holds {self.info.max_context} with the answer",
            )
        return SampleParams(
            max_tokens=min(room, request.max_tokens or room),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or -1,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            stop=[[token] for token in self._renderer.stop_ids],
        )

    async def _events(
        self, adapter: str | None, params: SampleParams, request: ChatRequest, trace: Trace, began: float
    ) -> AsyncGenerator[Event]:
        if self._meter is not None:
            await self._meter.begin()
        writers = [_Writer(self._renderer, sampled, request) for sampled in trace.samples]
        writing = set(range(request.n))
        stream = self._engine.sample(adapter, trace.prompt, params, request.n)
        async with aclosing(cast("AsyncGenerator[Token | Finished]", stream)) as sampled:
            async for event in sampled:
                if event.index not in writing:  # its text has stopped it already
                    continue
                writer = writers[event.index]
                delta = writer.add(event) if isinstance(event, Token) else writer.end(event.index)
                if delta.text or delta.tokens:
                    yield delta
                if isinstance(event, Finished) or writer.stopped is not None:
                    writing.discard(event.index)
                    yield End(event.index, _reason(event, writer.stopped), writer.stopped)
                    if not writing:
                        break
        if self._meter is not None:
            trace.cpu_seconds = await self._meter.book(time.monotonic() - began)
        yield Usage(input_tokens=len(trace.prompt), output_tokens=sum(len(sample.ids) for sample in trace.samples))


class _CpuMeter:
    """Books the CPU time of our own engine on the calls that it answers.

    Each gets what was used since the call before it ended, at most its own duration on all cores, so that idle time and
    training are not booked on it. Calls that overlap share roughly; the sum is what counts.
    """

    def __init__(self, clock: CpuClock) -> None:
        self._clock = clock
        self._booked: float | None = None

    async def begin(self) -> None:
        """Take the time of the first call."""
        if self._booked is None:
            self._booked = await self._clock()

    async def book(self, duration: float) -> float | None:
        """Return the CPU seconds of a call that ends now, after ``duration`` seconds."""
        try:
            now = await self._clock()
        except EngineError:  # the answer is there all the same
            return None
        used, self._booked = now - (self._booked or 0.0), now
        return max(0.0, min(used, duration * (os.cpu_count() or 1)))


class _Writer:
    """Makes one answer's text out of its tokens, up to a stop string."""

    def __init__(self, renderer: "ChatRenderer", sampled: Sampled, request: ChatRequest) -> None:
        self.stopped: str | None = None  # the stop string that ended the text
        self._renderer = renderer
        self._decoder = renderer.decoder()
        self._sampled = sampled
        self._stops = request.stop
        self._logprobs = request.logprobs
        self._held = ""  # text that may be the beginning of a stop string

    def add(self, token: Token) -> Delta:
        """Take a sampled token; return what it adds to the text."""
        self._sampled.ids.append(token.id)
        self._sampled.logprobs.append(token.logprob)
        if token.id in self._renderer.stop_ids:
            return Delta(token.index, "")
        shown = [self._shown(token)] if self._logprobs else []
        return Delta(token.index, self._pass(self._decoder.add(token.id)), shown)

    def end(self, index: int) -> Delta:
        """Return the text that was held back."""
        text = self._pass(self._decoder.end())
        return Delta(index, text + self._held)

    def _pass(self, text: str) -> str:
        """Return what of the text so far cannot become part of a stop string."""
        if not self._stops:
            return text
        text = self._held + text
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped, self._held = found[1], ""
            return text[: found[0]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _shown(self, token: Token) -> SampledText:
        data = self._renderer.token_bytes(token.id)
        return SampledText(data.decode("utf-8", "replace"), data, token.logprob)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


async def _closing(pieces: AsyncGenerator[bytes], events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    """Yield an answer's bytes; closing this closes what they are made of, down to the engine."""
    async with aclosing(events), aclosing(pieces):
        async for piece in pieces:
            yield piece


def _reason(event: Token | Finished, stopped: str | None) -> Reason:
    return "length" if stopped is None and isinstance(event, Finished) and event.reason == "length" else "stop"


# What our models serve


def _check(request: ChatRequest, dialect: str) -> None:
    """Refuse what our models do not serve; what asks for nothing is taken."""
    choice = request.tool_choice
    asked: dict[str, Any] = {
        "tools": request.tools,
        "tool_choice": choice is not None and choice.mode in ("required", "one"),
        "response_format": request.answer_format,
        "top_logprobs": request.top_logprobs,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": request.logit_bias,
        "reasoning_effort": request.reasoning is not None and not request.reasoning.off,
        "verbosity": request.verbosity,
    }
    for name, value in asked.items():
        if value:
            where = _wire(name, dialect)
            raise BadInput(where, "not served by the local model; leave it out or use a hosted model")


def _rendered(messages: Sequence[Message], dialect: str) -> Iterator[dict[str, str]]:
    """Yield messages as the renderer takes them, text only."""
    for place, message in enumerate(messages):
        texts = [_text_of(block, at, place, dialect) for at, block in enumerate(message.blocks)]
        yield {"role": message.role, "content": "".join(texts)}


def _text_of(block: Any, at: int, place: int, dialect: str) -> str:
    if isinstance(block, Text | Refusal):
        return block.text
    where, part = _wire("messages", dialect), ""
    if dialect == "openai.chat":  # elsewhere messages and parts are not the canonical ones, place by place
        where, part = f"{where}[{place}]", f".content[{at}]"
    if isinstance(block, ToolCall | ToolResult):
        raise BadInput(where, "the local model takes no tool calls yet; a hosted model does")
    kind = type(block).__name__.lower()
    raise BadInput(where + part, f"the local model takes text parts, not {kind!r}")


def _wire(name: str, dialect: str) -> str:
    return _WIRE.get(dialect, {}).get(name, name)

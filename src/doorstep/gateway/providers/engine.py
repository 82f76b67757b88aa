"""Our own engine as a provider: renders the messages, samples, and traces exact ids with their log-probabilities.

The engine stops on token ids; stop *strings* are looked for here, in the text.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import cast

from doorstep.engine.api import Engine, Finished, ModelInfo, SampleParams, Token
from doorstep.errors import BadInput
from doorstep.gateway.chat import ChatRequest, Delta, End, Event, Sampled, SampledText, Trace, Usage
from doorstep.gateway.providers.base import Answer, Ask, content_type
from doorstep.renderers.chat import ChatRenderer
from doorstep.value.prices import LOCAL

AdapterFor = Callable[[str], Awaitable[str]]


class EngineProvider:
    """Answers for the base model of an engine and for the adapters on it.

    ``adapter_for`` has the engine hold the checkpoint at a tinker:// path and returns the adapter's name.
    """

    name = LOCAL

    def __init__(self, engine: Engine, info: ModelInfo, renderer: ChatRenderer, adapter_for: AdapterFor) -> None:
        self.info = info
        self._engine = engine
        self._renderer = renderer
        self._adapter_for = adapter_for

    async def answer(self, ask: Ask) -> Answer:
        """Render and begin to sample."""
        request = ask.dialect.read(ask.body)
        prompt = self._renderer.prompt(request.messages)
        params = self._params(request, len(prompt))
        adapter = None if ask.adapter is None else await self._adapter_for(ask.adapter)
        trace = Trace(
            prompt=prompt,
            samples=[Sampled() for _ in range(request.n)],
            policy=ask.adapter or self.info.digest,
            tokenizer_digest=self.info.tokenizer_digest,
        )
        events = self._events(adapter, params, request, trace)
        model = ask.adapter or self.info.name
        body = ask.dialect.write(events, head=ask.head, answer_id=ask.call_id, model=model, request=request)
        return Answer(body=body, content_type=content_type(ask.head), trace=trace)

    async def close(self) -> None:
        """The engine belongs to the server."""

    def _params(self, request: ChatRequest, prompt: int) -> SampleParams:
        room = self.info.max_context - prompt
        if room < 1:
            raise BadInput(
                "messages",
                f"they are {prompt} tokens long; {self.info.name} holds {self.info.max_context} with the answer",
            )
        return SampleParams(
            max_tokens=min(room, request.max_tokens or room),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=[[token] for token in self._renderer.stop_ids],
        )

    async def _events(
        self, adapter: str | None, params: SampleParams, request: ChatRequest, trace: Trace
    ) -> AsyncGenerator[Event]:
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
                if isinstance(event, Finished) or writer.stopped:
                    writing.discard(event.index)
                    yield End(event.index, "stop" if writer.stopped else cast("Finished", event).reason)
                    if not writing:
                        break
        yield Usage(len(trace.prompt), sum(len(sample.ids) for sample in trace.samples))


class _Writer:
    """Makes one answer's text out of its tokens, up to a stop string."""

    def __init__(self, renderer: ChatRenderer, sampled: Sampled, request: ChatRequest) -> None:
        self.stopped = False
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
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _shown(self, token: Token) -> SampledText:
        data = self._renderer.token_bytes(token.id)
        return SampledText(data.decode("utf-8", "replace"), data, token.logprob)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)

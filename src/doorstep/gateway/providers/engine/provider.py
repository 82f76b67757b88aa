"""Our own engine as a provider: renders the messages, samples, and traces exact ids with their log-probabilities.

The engine stops on token ids and keeps to grammars; stop *strings*, thoughts and calls of tools are looked for here, in
the text.
"""

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from doorstep.engine.api import Engine, Finished, Image, ModelInfo, SampleParams, Token
from doorstep.errors import BadInput, EngineError
from doorstep.gateway.chat import Event, Sampled, Trace, Usage
from doorstep.gateway.dialects import anthropic_count, openai_completions
from doorstep.gateway.dialects.base import ChatDialect
from doorstep.gateway.providers.base import Answer, Ask, Key, content_type, from_generator
from doorstep.gateway.providers.engine.question import Continuation, Question
from doorstep.gateway.providers.engine.writing import Writer
from doorstep.value.prices import LOCAL

if TYPE_CHECKING:
    from doorstep.renderers.chat import ChatRenderer

AdapterFor = Callable[[str, str | None], Awaitable[str]]
CpuClock = Callable[[], Awaitable[float]]
Write = Callable[..., AsyncIterator[bytes]]


class EngineProvider:
    """Answers for the base model of an engine and for the adapters on it.

    ``adapter_for`` has the engine hold the checkpoint at a tinker:// path and returns the adapter's name; a client that
    named the path itself must own it or it must be published, so its key's id is given. ``cpu`` gives the CPU seconds
    used so far by all that answering takes.
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
            asked = Question(anthropic_count.count(ask.body), dialect.NAME, self._renderer, self.info)
            prompt, _images = await self._prompt(asked)
            return Answer(body=anthropic_count.write(len(prompt)))
        began = time.monotonic()
        write: Write
        if dialect.NAME == openai_completions.NAME:
            text, request = openai_completions.read(ask.body)
            question: Question = Continuation(text, request, dialect.NAME, self._renderer, self.info)
            write = openai_completions.write
        elif isinstance(dialect, ChatDialect):
            request = dialect.read(ask.body)
            question, write = Question(request, dialect.NAME, self._renderer, self.info), dialect.write
        else:
            raise BadInput("model", f"{ask.head.model} is a chat model; it does not answer {dialect.NAME}")
        prompt, images = await self._prompt(question)
        params = question.params(prompt)
        adapter = None if ask.adapter is None else await self._adapter(ask.adapter, ask)
        trace = Trace(
            prompt=prompt,
            samples=[Sampled() for _ in range(request.n)],
            policy=ask.adapter or self.info.digest,
            tokenizer_digest=self.info.tokenizer_digest,
        )
        writers = [
            Writer(index, self._renderer, question.reader(), sampled, request)
            for index, sampled in enumerate(trace.samples)
        ]
        events = self._events(adapter, params, images, writers, trace, began)
        model = ask.adapter or self.info.name
        pieces = write(events, head=ask.head, answer_id=ask.call_id, model=model, request=request)
        body = _closing(cast("AsyncGenerator[bytes]", pieces), events)
        return Answer(body=from_generator(body), content_type=content_type(ask.head), trace=trace)

    async def close(self) -> None:
        """The engine belongs to the server."""

    async def _adapter(self, path: str, ask: Ask) -> str:
        """Return the adapter of a checkpoint; what a route or the settings name is the operator's choice."""
        return await self._adapter_for(path, ask.key_id if ask.head.model == path else None)

    async def _prompt(self, question: Question) -> tuple[list[int], list[Image]]:
        """Return a question's ids and images, each with its place among them."""
        if not question.images:
            return question.prompt, []
        sizes = await self._engine.measure(question.images)
        prompt, places = self._renderer.with_images(question.prompt, sizes)
        each = zip(places, sizes, question.images, strict=True)
        return prompt, [Image(at=at, tokens=size, data=data) for at, size, data in each]

    async def _events(
        self,
        adapter: str | None,
        params: SampleParams,
        images: list[Image],
        writers: list[Writer],
        trace: Trace,
        began: float,
    ) -> AsyncGenerator[Event]:
        if self._meter is not None:
            await self._meter.begin()
        writing = set(range(len(writers)))
        cached = 0
        stream = self._engine.sample(adapter, trace.prompt, params, len(writers), images)
        async with aclosing(cast("AsyncGenerator[Token | Finished]", stream)) as sampled:
            async for event in sampled:
                if event.index not in writing:  # its text has ended it already
                    continue
                writer = writers[event.index]
                for written in writer.add(event) if isinstance(event, Token) else writer.end():
                    yield written
                if isinstance(event, Finished):
                    cached = max(cached, event.cached)
                if isinstance(event, Finished) or writer.done:
                    writing.discard(event.index)
                    yield writer.ending(event)
                    if not writing:
                        break
        if self._meter is not None:
            trace.cpu_seconds = await self._meter.book(time.monotonic() - began)
        yield Usage(
            input_tokens=len(trace.prompt),
            output_tokens=sum(len(sample.ids) for sample in trace.samples),
            cached_tokens=cached or None,
            reasoning_tokens=sum(writer.thought for writer in writers) if self._renderer.thinks else None,
        )


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


async def _closing(pieces: AsyncGenerator[bytes], events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    """Yield an answer's bytes; closing this closes what they are made of, down to the engine."""
    async with aclosing(events), aclosing(pieces):
        async for piece in pieces:
            yield piece

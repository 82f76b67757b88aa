"""A fake provider: no model behind it, answers by rule, and fails where told to. For trying out and for tests.

It is there when ``doorstep.toml`` asks for it: ``[providers.NAME]`` with ``base_url = "fake:"``. Its models are the
scripts below, ``NAME/echo`` and so on; tests give their own.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping

import msgspec

from doorstep.errors import NotFound, ProviderError
from doorstep.gateway.chat import ChatRequest, Delta, End, Event, Usage
from doorstep.gateway.providers.base import Answer, Ask, content_type

SCHEME = "fake:"


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How a fake model answers."""

    text: str | None = None  # None: repeats the last message
    chunk: int = 4  # characters at a time
    delay_s: float = 0.0  # before each chunk
    refuse: int | None = None  # HTTP status given instead of an answer
    cut_after: int | None = None  # chunks after which the answer breaks off


SCRIPTS: Mapping[str, Script] = {
    "echo": Script(),
    "slow": Script(delay_s=0.05),
    "busy": Script(refuse=429),
    "broken": Script(cut_after=2),
}


class FakeProvider:
    """Answers by script. ``cancelled`` counts the answers that were given up by the one who asked."""

    def __init__(self, name: str, scripts: Mapping[str, Script] = SCRIPTS) -> None:
        self.name = name
        self.cancelled = 0
        self._scripts = scripts

    async def answer(self, ask: Ask) -> Answer:
        """Answer by the script of the model."""
        script = self._scripts.get(ask.model)
        if script is None:
            raise NotFound(f"the fake provider has no model '{ask.model}'; it has {', '.join(self._scripts)}")
        if script.refuse is not None:
            raise ProviderError(f"the fake provider refuses with {script.refuse}, as told", status=script.refuse)
        request = ask.dialect.read(ask.body)
        body = ask.dialect.write(
            self._events(script, request), head=ask.head, answer_id=ask.call_id, model=ask.model, request=request
        )
        return Answer(body=body, content_type=content_type(ask.head))

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def _events(self, script: Script, request: ChatRequest) -> AsyncGenerator[Event]:
        text = str(request.messages[-1].get("content")) if script.text is None else script.text
        chunks = [text[start : start + script.chunk] for start in range(0, len(text), script.chunk)]
        try:
            for place, chunk in enumerate(chunks):
                if place == script.cut_after:
                    raise ProviderError("the fake provider breaks off here, as told")
                await asyncio.sleep(script.delay_s)
                for index in range(request.n):
                    yield Delta(index, chunk)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        for index in range(request.n):
            yield End(index, "stop")
        words = sum(len(str(message.get("content")).split()) for message in request.messages)
        yield Usage(words, len(text.split()) * request.n)

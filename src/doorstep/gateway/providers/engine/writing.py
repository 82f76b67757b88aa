"""One answer of our own model, from sampled tokens to canonical events: words, thoughts and calls, up to a stop."""

from typing import TYPE_CHECKING

from doorstep import ids
from doorstep.engine.api import Finished, Token
from doorstep.gateway.chat import (
    ChatRequest,
    Delta,
    End,
    Event,
    Reason,
    Sampled,
    SampledText,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
)
from doorstep.renderers.answers import Part, Reader, Thought, overlap
from doorstep.renderers.tools import Call

if TYPE_CHECKING:
    from doorstep.renderers.chat import ChatRenderer


class Writer:
    """Makes one answer's events out of its tokens, and notes them in ``sampled``.

    ``done``: its text has ended it, by a stop string or with the one call that may be. ``thought`` counts the tokens of
    thoughts.
    """

    def __init__(
        self, index: int, renderer: "ChatRenderer", reader: Reader, sampled: Sampled, request: ChatRequest
    ) -> None:
        self.done = False
        self.thought = 0
        self._index = index
        self._renderer = renderer
        self._reader = reader
        self._decoder = renderer.decoder()
        self._sampled = sampled
        self._stop = StopStrings(request.stop)
        self._logprobs = request.logprobs
        self._one_call = request.parallel_tool_calls is False
        self._calls = 0
        self._waiting: list[SampledText] = []  # tokens of which it is not known yet whether they are words

    def add(self, token: Token) -> list[Event]:
        """Take a sampled token; return what it adds."""
        self._sampled.ids.append(token.id)
        self._sampled.logprobs.append(token.logprob)
        if token.id in self._renderer.stop_ids:
            return []
        if self._logprobs and self._reader.speaking:
            self._waiting.append(self._shown(token.id, token.logprob, token.top))
        events = self._events(self._reader.add(self._decoder.add(token.id)))
        self.thought += self._reader.thinking or any(isinstance(event, ThinkingDelta) for event in events)
        return events

    def end(self) -> list[Event]:
        """Return what was held back."""
        events = self._events([*self._reader.add(self._decoder.end()), *self._reader.end()])
        return [*events, *self._rest()]

    def ending(self, event: Token | Finished) -> End:
        """Return how the answer ended."""
        reason: Reason = "tool_calls" if self._calls else "stop"
        if isinstance(event, Finished) and event.reason == "length" and not self.done:
            reason = "length"
        return End(self._index, reason, self._stop.found)

    def _events(self, parts: list[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if self.done:
                break
            match part:
                case str():
                    self._say(part, events)
                case Call():
                    events += [*self._rest(), *self._call(part)]
                case Thought():
                    events += self._rest()
                    events.append(ThinkingDelta(self._index, part.text))
        if not self._reader.speaking:
            self._waiting.clear()
        elif self._waiting and not self._reader.unsure:
            self._say("", events)
        return events

    def _rest(self) -> list[Event]:
        """Return the words that were held back for a stop string that did not come."""
        rest = self._stop.end()
        return [Delta(self._index, rest)] if rest else []

    def _say(self, text: str, events: list[Event]) -> None:
        words = self._stop.pass_on(text)
        self.done = self._stop.found is not None
        if words or self._waiting:
            events.append(Delta(self._index, words, self._waiting))
            self._waiting = []

    def _call(self, call: Call) -> list[Event]:
        number, self._calls = self._calls, self._calls + 1
        self.done = self._one_call
        begin = ToolCallBegin(self._index, number, ids.new_id("call"), call.name)
        return [begin, ToolCallDelta(self._index, number, call.arguments)]

    def _shown(self, token: int, logprob: float, top: list[tuple[int, float]]) -> SampledText:
        data = self._renderer.token_bytes(token)
        others = [self._shown(other, value, []) for other, value in top]
        return SampledText(data.decode("utf-8", "replace"), data, logprob, others)


class StopStrings:
    """Lets text pass up to the first of some strings; ``found`` is the one that was there."""

    def __init__(self, strings: list[str]) -> None:
        self.found: str | None = None
        self._strings = strings
        self._held = ""  # text that may be the beginning of one

    def pass_on(self, text: str) -> str:
        """Return what of the text so far cannot become part of a stop string."""
        if not self._strings:
            return text
        text = self._held + text
        found = min(((at, stop) for stop in self._strings if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.found, self._held = found[1], ""
            return text[: found[0]]
        keep = max(overlap(text, stop) for stop in self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held

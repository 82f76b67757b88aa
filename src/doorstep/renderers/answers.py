"""What a model's answer is made of: words, thoughts and calls of tools, read out of its text while it comes.

Pure text; knows no tokens. What cannot be understood as a call is given as the words that it is: nothing is lost.
"""

from typing import Literal, Protocol

import msgspec

from doorstep.renderers.tools import Call, Format, Schemas


class Thought(msgspec.Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class Marks(msgspec.Struct, frozen=True):
    """What stands before and after a model's thoughts."""

    opening: str
    closing: str


Part = str | Thought | Call
Stance = Literal["open", "closed"] | None  # a prompt ends in a thought that it has opened, or behind one


class Reader(Protocol):
    """Reads one answer. What comes now are words for people (``speaking``), a thought (``thinking``), or a call.

    ``unsure``: text is held back of which it is not known yet.
    """

    @property
    def speaking(self) -> bool: ...  # noqa: D102

    @property
    def thinking(self) -> bool: ...  # noqa: D102

    @property
    def unsure(self) -> bool: ...  # noqa: D102

    def add(self, text: str) -> list[Part]:
        """Take more text; return what it completes."""
        ...

    def end(self) -> list[Part]:
        """Return what is left when no more text comes."""
        ...


class MarkedReader:
    """Reads answers whose thoughts and calls stand between marks. ``thoughts`` and ``form`` are None where not used.

    ``stance`` is how the prompt ended.
    """

    def __init__(self, thoughts: Marks | None, form: Format | None, schemas: Schemas, stance: Stance = None) -> None:
        self._thoughts = thoughts
        self._form = form
        self._schemas = schemas
        self._held = ""
        self._step = self._think if stance == "open" else self._say
        self._said = False  # whether there were words since the beginning or the thought
        self._trim = stance == "closed"  # whether line ends are passed over: they only set marks apart from words

    @property
    def speaking(self) -> bool:
        """Whether neither a thought nor a call is open."""
        return self._step == self._say

    @property
    def thinking(self) -> bool:
        """Whether a thought is open."""
        return self._step == self._think

    @property
    def unsure(self) -> bool:
        """Whether there is text that may belong to a mark."""
        return bool(self._held)

    def add(self, text: str) -> list[Part]:
        """Take more text; return what it completes."""
        self._held += text
        parts: list[Part] = []
        step = None
        while step != self._step:  # until nothing changes: there may be another mark behind the last
            step = self._step
            parts += step()
        return [part for part in parts if part not in ("", Thought(""))]

    def end(self) -> list[Part]:
        """Return what is left; a call without its closing mark is one if it is whole all the same."""
        held, self._held = self._held, ""
        if not held:
            return []
        if self._step == self._call:
            return self._read(held)
        return [Thought(held)] if self._step == self._think else [held]

    def _say(self) -> list[Part]:
        if self._trim:
            self._held = self._held.lstrip("\n")
            self._trim = not self._held
        if self._form and self._form.bare and not self._said and self._held.lstrip().startswith("{"):
            self._step = self._call
            return []
        openings = [
            mark for mark in (self._thoughts and self._thoughts.opening, self._form and self._form.opening) if mark
        ]
        found = min(((at, mark) for mark in openings if (at := self._held.find(mark)) >= 0), default=None)
        if found is None:
            words = self._settled(*openings)
            self._said = self._said or bool(words)
            return [words]
        at, opening = found
        words, self._held = self._held[:at].rstrip(), self._held[at:]
        if self._thoughts and opening == self._thoughts.opening:
            self._held = self._held.removeprefix(opening)
            self._step = self._think
        else:
            self._step = self._call
        return [words]

    def _think(self) -> list[Part]:
        assert self._thoughts is not None
        thought, closing, rest = self._held.partition(self._thoughts.closing)
        if not closing:
            return [Thought(self._settled(self._thoughts.closing, spaces=False))]
        self._held, self._trim, self._said = rest, True, False
        self._step = self._say
        return [Thought(thought)]

    def _call(self) -> list[Part]:
        assert self._form is not None
        closing = self._form.closing
        if closing is None or closing not in self._held:
            return []
        at = self._held.index(closing) + len(closing)
        call, self._held = self._held[:at], self._held[at:]
        self._trim, self._said, self._step = True, True, self._say
        return self._read(call)

    def _read(self, text: str) -> list[Part]:
        assert self._form is not None
        try:
            return [*self._form.read(text, self._schemas)]
        except (ValueError, RecursionError):
            return [text]

    def _settled(self, *marks: str, spaces: bool = True) -> str:
        """Return what of the text cannot belong to a mark, nor to the white space before one."""
        size = len(self._held) - max((overlap(self._held, mark) for mark in marks), default=0)
        if marks and spaces:
            size = len(self._held[:size].rstrip())
        settled, self._held = self._held[:size], self._held[size:]
        return settled


class HarmonyReader:
    """Reads GPT-OSS's answers: messages, each with a header that says whom it is for."""

    _ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
    _BODY = "<|message|>"

    def __init__(self, form: Format, schemas: Schemas) -> None:
        self._form = form
        self._schemas = schemas
        self._header = ""
        self._held = ""
        self._in_body = False

    @property
    def speaking(self) -> bool:
        """Whether a message to the user is open."""
        return self._in_body and not self.thinking and not self._is_call

    @property
    def thinking(self) -> bool:
        """Whether a thought is open."""
        return self._in_body and "analysis" in self._header and not self._is_call

    @property
    def unsure(self) -> bool:
        """Whether there is text that may belong to a mark."""
        return bool(self._held)

    def add(self, text: str) -> list[Part]:
        """Take more text; return what it completes."""
        self._held += text
        parts: list[Part] = []
        before = None
        while before != (self._in_body, self._held):
            before = self._in_body, self._held
            parts += self._body(whole=False) if self._in_body else self._head()
        return parts

    def end(self) -> list[Part]:
        """Return what is left."""
        return self._body(whole=True) if self._in_body else []

    @property
    def _is_call(self) -> bool:
        return "to=" in self._header

    def _head(self) -> list[Part]:
        header, mark, rest = self._held.partition(self._BODY)
        if mark:
            self._header, self._held, self._in_body = header, rest, True
        return []

    def _body(self, *, whole: bool) -> list[Part]:
        at = min((at for mark in self._ENDS if (at := self._held.find(mark)) >= 0), default=None)
        if at is not None or whole:
            text, self._held = self._held[:at], "" if at is None else self._held[at:]
            parts = self._parts(text)
            self._in_body = False
            return parts
        if self._is_call:
            return []
        size = len(self._held) - max(overlap(self._held, mark) for mark in self._ENDS)
        text, self._held = self._held[:size], self._held[size:]
        return self._parts(text)

    def _parts(self, text: str) -> list[Part]:
        if self._is_call:
            try:
                return [*self._form.read(f"{self._header}{self._BODY}{text}", self._schemas)]
            except (ValueError, RecursionError):
                return [text]
        if not text:
            return []
        return [Thought(text)] if self.thinking else [text]


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of ``text`` that ``mark`` begins with, short of all of it."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)

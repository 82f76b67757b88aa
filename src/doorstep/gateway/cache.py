"""The exact-match cache: the answer to a request that was asked before, word for word, without asking again.

It is off unless a model's alias or a request turns it on: with the header ``x-doorstep-cache: on``, or ``max-age=60``
for an answer that is no older than so many seconds (0 asks anew and keeps the new answer), or ``off`` where the alias
says on. An answer is given to the key that it was made for; to every key only where the alias says ``all``. A question
is the same when all of its fields are, in whatever order and spacing, save the name of the model: what counts is who
would answer. Only whole answers with status 200 are kept, in memory and up to a number of bytes; those used longest ago
leave first.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from doorstep import ids
from doorstep.config import CacheSettings, ModelSettings
from doorstep.errors import BadInput
from doorstep.gateway.dialects.base import Dialect, Head, path_of
from doorstep.gateway.models import Target

HEADER = b"x-doorstep-cache"
ENTRY_BYTES = 500  # of an entry beside its body, about
_SAID_ASIDE = (b"anthropic-", b"openai-")  # beginnings of headers that may change an answer
_Place = tuple[bytes, str, str, str | None]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A call's wish to be answered from the cache: the question's digest, and how old an answer may be."""

    dialect: Dialect
    question: bytes
    max_age_s: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that was kept, of the call ``call_id``. A stream is replayed as one piece."""

    call_id: str
    content_type: str
    body: bytes
    at: float


class Cache:
    """The answers of one process."""

    def __init__(self, settings: CacheSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes = 0
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[_Place, Kept] = OrderedDict()

    def wish(
        self,
        alias: ModelSettings | None,
        headers: Mapping[bytes, bytes],
        *,
        dialect: Dialect,
        head: Head,
        body: bytes,
        key_id: str,
    ) -> Wish | None:
        """Return what a call wishes of the cache, or None; ``BadInput`` for a header that says nothing known."""
        said = headers.get(HEADER)
        scope = "off" if alias is None else alias.cache
        if said is None and scope == "off":
            return None
        max_age_s = self._settings.ttl_s if said is None else _max_age(said, self._settings.ttl_s)
        if max_age_s is None:
            return None
        aside = sorted((name, value) for name, value in headers.items() if name.startswith(_SAID_ASIDE))
        parts = [
            b"" if scope == "all" else key_id.encode(),
            dialect.NAME.encode(),
            path_of(dialect, "").encode(),
            b"stream" if head.stream else b"",
            *(part for header in aside for part in header),
            _canonical(body),
        ]
        question = hashlib.sha256()
        for part in parts:
            question.update(len(part).to_bytes(8, "big") + part)
        return Wish(dialect=dialect, question=question.digest(), max_age_s=max_age_s)

    def find(self, wish: Wish, target: Target) -> Kept | None:
        """Return the kept answer of this target, if there is one that is young enough."""
        place = _place(wish, target)
        kept = self._kept.get(place)
        if kept is None:
            return None
        age_s = self._clock() - kept.at
        if age_s >= self._settings.ttl_s:
            self._drop(place)
            return None
        if age_s >= wish.max_age_s:
            return None
        self._kept.move_to_end(place)
        return kept

    def keep(self, wish: Wish, target: Target, *, call_id: str, status: int, content_type: str, body: bytes) -> None:
        """Keep an answer of this target, when it is whole."""
        if status != 200 or len(body) + ENTRY_BYTES > self._settings.most_bytes or not _is_whole(wish.dialect, body):
            return
        place = _place(wish, target)
        if place in self._kept:
            self._drop(place)
        self._kept[place] = Kept(call_id=call_id, content_type=content_type, body=body, at=self._clock())
        self.bytes += len(body) + ENTRY_BYTES
        while self.bytes > self._settings.most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, place: _Place) -> None:
        self.bytes -= len(self._kept.pop(place).body) + ENTRY_BYTES


def _place(wish: Wish, target: Target) -> _Place:
    return wish.question, target.provider.name, target.model, target.adapter


def _max_age(said: bytes, ttl_s: float) -> float | None:
    """Return how old an answer may be by a request's header; None where it says off."""
    text = said.decode("latin-1").strip().lower()
    if text in ("on", "off"):
        return ttl_s if text == "on" else None
    name, _, seconds = text.partition("=")
    if name.strip() == "max-age" and seconds.strip().isdecimal():
        return float(seconds)
    raise BadInput(HEADER.decode(), f"{text[:40]!r} is none of on, off and max-age=SECONDS")


def _canonical(body: bytes) -> bytes:
    """Return a request in one spelling, without its model; what is no JSON object counts as it is."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    fields.pop("model", None)
    return ids.canonical(fields)


def _is_whole(dialect: Dialect, body: bytes) -> bool:
    reading = dialect.understand(body)
    return reading.complete and reading.error is None

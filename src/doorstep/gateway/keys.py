"""Keys: who may call, and on which terms. Kept as SHA-256 in ``keys.json`` of the data folder; a key is shown once.

With no key in the file any caller on this machine is let in, but no web page of another origin: a browser would send
its requests from this machine too. Nor is a request that calls this machine by a name of the public internet, since a
page may have its own name mean this machine and is then of the same origin. With one key, every caller needs one. The
server's own key, made at each start for the commands that work on its data folder, counts like any other but is in no
list.

A running server looks at the file at most every ``LOOK_S``, so that a key that was made, changed or revoked counts
within that time, and no call pays for looking. A key is found by the SHA-256 of what was sent. How long that takes
depends on the digest of a guess, which tells nothing of a key. Nothing keeps what was sent.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from doorstep import ids
from doorstep.errors import BadInput, NotFound, UsageError

log = logging.getLogger(__name__)

FILE = "keys.json"
LOCK = "keys.lock"
PREFIX = "tml-"  # the Tinker SDK sends no other keys, and one key should do for everything
LOOK_S = 0.2
BEARER = b"bearer "
_OTHERS = (b"api-key", b"x-goog-api-key", b"x-hume-api-key")  # headers that a key may come in, of Azure, Google, Hume

AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Money = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000_000)]  # to the end of the year 9999
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]

Note = Callable[[str, str, dict[str, Any]], None]


class Role(StrEnum):
    """What a key is for."""

    ADMIN = "admin"  # everything, also keys
    MEMBER = "member"  # calls and feedback
    VIEWER = "viewer"  # reading


class Allowance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much may be asked for and spent; what is None has no limit. Days and months are those of UTC."""

    models: tuple[Name, ...] = ()  # patterns such as ``openai/*`` of the names that may be asked for; none: all
    requests_per_minute: AtLeastOne | None = None
    tokens_per_minute: AtLeastOne | None = None
    day_microusd: Money | None = None
    month_microusd: Money | None = None


class Terms(Allowance, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a person decides about a key."""

    name: Name  # whose it is
    role: Role = Role.MEMBER
    expires_us: Moment | None = None
    workflow: Name | None = None  # what calls with this key belong to; its limits count too
    customer: Name | None = None  # whose calls they are, unless a call says so itself
    retention_days: Days | None = None  # how long what was said is kept


class Former(msgspec.Struct, frozen=True, kw_only=True):
    """What a key was before it was rotated; it counts for a while."""

    digest: str
    until_us: int


class Key(Terms, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=False):
    """A key as it is kept. It stays the same key, with what it has spent, when its secret is rotated."""

    key_id: str
    digest: str
    created_us: int
    former: tuple[Former, ...] = ()


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a call. ``key_id`` is empty for the machine's own user, who needs no key or has the server's own."""

    key_id: str
    name: str
    role: Role
    allowance: Allowance
    workflow: str | None = None
    customer: str | None = None

    @property
    def may_call(self) -> bool:
        """Whether it may do more than read."""
        return self.role is not Role.VIEWER


UNLIMITED = Allowance()
LOCAL = Caller(key_id="", name="this machine", role=Role.ADMIN, allowance=UNLIMITED)


def new_secret() -> str:
    """Return a fresh key."""
    return PREFIX + secrets.token_urlsafe(32)


def terms_of(key: Key) -> dict[str, Any]:
    """Return a key's terms as plain values: what may be shown of it."""
    return {field: msgspec.to_builtins(getattr(key, field)) for field in Terms.__struct_fields__}


class Known(NamedTuple):
    """What is known of a digest."""

    digest: bytes
    until_us: int | None
    caller: Caller


class Keys:
    """The keys of one data folder.

    ``own`` is the server's own key, where there is one. ``open_to_local`` says whether callers need none as long as
    there is none, which is right only where nobody else can reach the server. ``note`` is told of every change before
    it is made, with the action, the key's id and what changes.
    """

    def __init__(
        self, data: Path, own: str | None = None, *, open_to_local: bool = True, note: Note = lambda *_: None
    ) -> None:
        self._file = data / FILE
        self._own = [Known(_digest(own.encode()), None, LOCAL)] if own else []
        self._open_to_local = open_to_local
        self._note = note
        self._version: tuple[int, int] | None = None
        self._look_at = 0.0
        self._keys: list[Key] = []
        self._known: dict[bytes, Known] = {}
        self._open = False  # callers need no key

    def who(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Return who sent a request with these headers (lower-case names), or None for one without a key that counts.

        A key may come as ``authorization: Bearer``, ``x-api-key``, ``api-key``, ``x-goog-api-key`` or
        ``x-hume-api-key``.
        """
        if time.monotonic() >= self._look_at:
            try:
                self._look()
            except UsageError as error:
                log.error("nobody with a key is let in: %s", error)
        if self._open:
            return LOCAL if _is_local(headers.get(b"origin")) and _is_near(headers.get(b"host", b"")) else None
        digest = _digest(_sent(headers))
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if known.until_us is not None and ids.now_us() >= known.until_us:
            return None
        return known.caller

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Return who sent a request with these headers, if they may do more than read."""
        caller = self.who(
            {name.lower().encode(): value.encode("latin-1", "replace") for name, value in headers.items()}
        )
        return caller if caller is not None and caller.may_call else None

    def all(self) -> list[Key]:
        """Return the keys as they are in the file now."""
        self._look()
        return self._keys

    def create(self, terms: Terms) -> tuple[Key, str]:
        """Make a key; this is the only time that it is seen."""
        secret, key_id = new_secret(), ids.new_id("key")
        digest = ids.digest(secret.encode())
        with self._changing() as keys:
            key = Key(key_id=key_id, digest=digest, created_us=ids.now_us(), **msgspec.structs.asdict(terms))
            self._note("key.create", key_id, terms_of(key))
            keys[key_id] = key
        return key, secret

    def change(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Change a key's terms, given as plain values; None takes a limit away."""
        with self._changing() as keys:
            key = _find(keys, key_id)
            before = terms_of(key)
            after = read_terms({**before, **changes})
            key = msgspec.structs.replace(key, **msgspec.structs.asdict(after))
            kept = terms_of(key)
            self._note("key.change", key_id, {name: [before[name], kept[name]] for name in changes})
            keys[key_id] = key
        return key

    def rotate(self, key_id: str, grace_s: float) -> tuple[Key, str]:
        """Give a key a new secret; the one before it counts for ``grace_s`` more seconds."""
        secret, now_us = new_secret(), ids.now_us()
        with self._changing() as keys:
            key = _find(keys, key_id)
            last = Former(digest=key.digest, until_us=now_us + round(grace_s * 1e6))
            former = tuple(one for one in (*key.former, last) if one.until_us > now_us)
            key = msgspec.structs.replace(key, digest=ids.digest(secret.encode()), former=former)
            self._note("key.rotate", key_id, {"grace_s": grace_s})
            keys[key_id] = key
        return key, secret

    def revoke(self, key_id: str) -> None:
        """Take a key away."""
        with self._changing() as keys:
            self._note("key.revoke", key_id, {"name": _find(keys, key_id).name})
            del keys[key_id]

    def _look(self) -> None:
        """Read the file if it is another one than before. ``UsageError`` when that cannot be done."""
        self._look_at = time.monotonic() + LOOK_S
        try:
            found = self._file.stat()
            version = found.st_mtime_ns, found.st_ino
            if version != self._version:
                self._learn(msgspec.json.decode(self._file.read_bytes(), type=list[Key]))
                self._version = version
        except FileNotFoundError:
            self._learn([])
            self._version = None
        except (OSError, ValueError) as error:
            self._learn([])
            self._version, self._open = None, False
            raise UsageError(f"{self._file} cannot be read ({error}); restore it, or remove it to begin anew") from None

    def _learn(self, keys: list[Key]) -> None:
        self._keys = keys
        self._open = self._open_to_local and not keys
        known = [*self._own, *(one for key in keys for one in _known(key))]
        self._known = {one.digest: one for one in known}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """Yield the keys to change; they are written at the end. Others who change them wait."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with (self._file.parent / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = {key.key_id: key for key in self.all()}
            yield keys
            self._write(list(keys.values()))
            self._look_at = 0.0

    def _write(self, keys: list[Key]) -> None:
        part = self._file.with_suffix(".part")
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(msgspec.json.encode(keys))
            out.flush()
            os.fsync(out.fileno())
        part.replace(self._file)


def read_terms(values: Mapping[str, Any]) -> Terms:
    """Return terms from plain values. ``BadInput`` for what cannot be."""
    try:
        return msgspec.convert(values, Terms)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        raise BadInput(where.rstrip("`") or "key", why) from None


def _find(keys: Mapping[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise NotFound(f"there is no key {key_id}; doorstep keys list shows them")
    return keys[key_id]


def _known(key: Key) -> Iterator[Known]:
    caller = Caller(
        key_id=key.key_id,
        name=key.name,
        role=key.role,
        allowance=Allowance(**{field: getattr(key, field) for field in Allowance.__struct_fields__}),
        workflow=key.workflow,
        customer=key.customer,
    )
    yield Known(bytes.fromhex(key.digest), key.expires_us, caller)
    for former in key.former:
        until_us = former.until_us if key.expires_us is None else min(former.until_us, key.expires_us)
        yield Known(bytes.fromhex(former.digest), until_us, caller)


def _sent(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request carries, empty if none."""
    given = headers.get(b"x-api-key") or headers.get(b"authorization")
    if given is None:
        return next((key for name in _OTHERS if (key := headers.get(name))), b"")
    return given[len(BEARER) :] if given[: len(BEARER)].lower() == BEARER else given


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _is_local(origin: bytes | None) -> bool:
    """Tell whether a request's origin is a page of this machine, or no page at all."""
    if origin is None:
        return True
    try:
        return urlsplit(origin.decode("latin-1")).hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:  # no address at all
        return False


@lru_cache(maxsize=64)
def _is_near(host: bytes) -> bool:
    """Tell whether a host is an address or a name that nobody on the public internet can have."""
    try:
        name = urlsplit(b"//" + host).hostname or b""
        return b"." not in name or name.endswith((b".localhost", b".internal")) or bool(ip_address(name.decode()))
    except ValueError:  # a name, or nothing that could be one
        return False

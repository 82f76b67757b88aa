"""Keys: who may call. Kept as SHA-256 in ``keys.json`` of the data folder; the key itself is shown once.

With no key in the file any caller on this machine is let in, but no web page of another origin: a browser would send
its requests from this machine too. With one key, every caller needs one. The server's own key, made at each start for
the commands that work on its data folder, counts like any other but is in no list.
"""

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from doorstep import ids
from doorstep.errors import NotFound, UsageError

FILE = "keys.json"
PREFIX = "tml-"  # the Tinker SDK sends no other keys, and one key should do for everything


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept."""

    key_id: str
    name: str
    digest: str
    created_us: int


def new_secret() -> str:
    """Return a fresh key."""
    return PREFIX + secrets.token_urlsafe(32)


class Keys:
    """The keys of one data folder. A running server sees new and revoked keys at the next call.

    ``own`` is the server's own key, where there is one.
    """

    def __init__(self, data: Path, own: str | None = None) -> None:
        self._file = data / FILE
        self._own = None if own is None else ids.digest(own.encode())
        self._version: tuple[int, int] | None = None
        self._keys: list[Key] = []

    def create(self, name: str) -> str:
        """Make a key; this is the only time that it is seen."""
        secret = new_secret()
        key = Key(key_id=ids.new_id("key"), name=name, digest=ids.digest(secret.encode()), created_us=ids.now_us())
        self._write([*self.all(), key])
        return secret

    def revoke(self, key_id: str) -> None:
        """Take a key away."""
        kept = [key for key in self.all() if key.key_id != key_id]
        if len(kept) == len(self.all()):
            raise NotFound(f"there is no key {key_id}; doorstep keys list shows them")
        self._write(kept)

    def all(self) -> list[Key]:
        """Return the keys that count now."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            self._keys, self._version = [], None
            return self._keys
        version = found.st_mtime_ns, found.st_ino
        if version != self._version:
            try:
                self._keys = msgspec.json.decode(self._file.read_bytes(), type=list[Key])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"{self._file} is damaged ({error}); restore it, or remove it to begin anew") from None
            self._version = version
        return self._keys

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request's headers carry a key that counts, or none is needed."""
        keys = self.all()
        if not keys:
            return _is_local(headers.get("origin"))
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        digest = ids.digest(given.encode("utf-8", "surrogateescape"))
        known = [key.digest for key in keys] + ([self._own] if self._own else [])
        matches = [hmac.compare_digest(digest, one) for one in known]
        return any(matches)

    def _write(self, keys: list[Key]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(msgspec.json.encode(keys))
        part.replace(self._file)


def _is_local(origin: str | None) -> bool:
    """Tell whether a request's origin is a page of this machine, or no page at all."""
    return origin is None or urlsplit(origin).hostname in ("localhost", "127.0.0.1", "::1")

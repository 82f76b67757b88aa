"""Weights to be taken away: the adapter as the engine saves it, in PEFT's format, encrypted with age if asked for.

Whoever is to read an encrypted file is a recipient: an age key (``age1…``) or an SSH public key.
"""

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from doorstep.engine.api import Checkpoint, Engine
from doorstep.errors import StoreError, UsageError

SUFFIX = ".age"


async def write(engine: Engine, adapter: str, folder: Path, recipients: list[str]) -> Checkpoint:
    """Write an adapter's files into a folder that is not there yet; each to all ``recipients``, if there are any."""
    keys = [_recipient(text) for text in recipients]  # before anything is written
    written = await engine.save(adapter, str(folder), optimizer=False)
    if not keys:
        return written
    return msgspec.structs.replace(written, size=await asyncio.to_thread(_encrypt_all, folder, keys))


def _encrypt_all(folder: Path, keys: list[Any]) -> int:
    """Put an encrypted file in the place of each file; return what they take on disk."""
    try:
        for file in [file for file in folder.rglob("*") if file.is_file()]:
            # By way of the memory: pyrage's encrypt_file does not tell when a full disk takes not all of it.
            file.with_name(f"{file.name}{SUFFIX}").write_bytes(_pyrage().encrypt(file.read_bytes(), keys))
            file.unlink()
        return sum(file.stat().st_size for file in folder.rglob(f"*{SUFFIX}"))
    except OSError as error:
        raise StoreError(f"nothing could be written to {folder} ({error.strerror}). Make room.") from None


def _recipient(text: str) -> Any:
    age = _pyrage()
    kind = age.x25519.Recipient if text.startswith("age1") else age.ssh.Recipient
    try:
        return kind.from_str(text)
    except age.RecipientError as error:
        raise UsageError(
            f"age_encryption_recipients: {text!r} is no age key (age1…) and no SSH public key: {error}"
        ) from None


def _pyrage() -> ModuleType:
    """Return the age library, which only this needs."""
    try:
        import pyrage
    except ModuleNotFoundError:
        raise UsageError(
            "age_encryption_recipients: the server cannot encrypt without pyrage. Install it there: "
            "pip install 'doorstep[train]'"
        ) from None
    return pyrage  # type: ignore[no-any-return]

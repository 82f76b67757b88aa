"""Files that came of jobs, or went into them: in the data folder, each by the SHA-256 of its content, each once."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

FOLDER = "artefacts"


class Artefacts:
    """The files of one data folder. A name is the digest and an ending, such as ``3f…c1.mp4``."""

    def __init__(self, data: Path) -> None:
        self._folder = data / FOLDER

    def path(self, name: str) -> Path:
        """Return where a file is."""
        return self._folder / name[:2] / name

    async def put(self, pieces: AsyncIterator[bytes], ending: str) -> str:
        """Keep a file durably; return its name. One that breaks off leaves nothing."""
        digest = hashlib.sha256()
        part = self._folder / f"{secrets.token_hex(8)}.part"
        file = await asyncio.to_thread(_create, part)
        try:
            async for piece in pieces:
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
            name = f"{digest.hexdigest()}.{ending}"
            await asyncio.to_thread(_settle, file, part, self.path(name))
        finally:
            file.close()
            part.unlink(missing_ok=True)
        return name

    async def put_bytes(self, data: bytes, ending: str) -> str:
        """Keep bytes that are there already."""
        return await self.put(_one(data), ending)

    def clear(self) -> None:
        """Delete what was being written when a server was killed; for the start, when nobody writes."""
        for part in self._folder.glob("*.part"):
            part.unlink()

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is as good."""
        self.path(name).unlink(missing_ok=True)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _settle(file: BinaryIO, part: Path, path: Path) -> None:
    """Have the file on the disk, then under its name."""
    file.flush()
    os.fsync(file.fileno())
    path.parent.mkdir(exist_ok=True)
    part.rename(path)

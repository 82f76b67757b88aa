"""What outlives the process: sessions, training runs, checkpoints and samplers, as JSON files beside their folders.

A record exists when its file does, and files appear whole (written aside, synced, renamed). A checkpoint's file
names the folder that holds its weights, so replacing one is a single rename. Knows folders, never their contents.

    SESSION/session.json
    SESSION/samplers/N.json
    SESSION/N/run.json
    SESSION/N/weights/NAME.json     SESSION/N/weights/UNIQUE/…
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from doorstep import ids
from doorstep.engine.api import LoraSpec
from doorstep.errors import NotFound, StoreError
from doorstep.training.paths import Kind, TinkerPath, parse, split_run_id

T = TypeVar("T", bound=msgspec.Struct)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One client program's connection; its models and samplers carry its id."""

    session_id: str
    owner: str
    created_us: int
    sdk_version: str
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    finished: str | None = None  # ``success``, ``errored`` or ``interrupted``


class TrainingRun(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter that is or was trained."""

    run_id: str
    owner: str
    base: str
    base_digest: str
    spec: LoraSpec
    created_us: int
    parent: str | None = None  # tinker:// path that it was loaded from
    user_metadata: dict[str, Any] | None = None


class SavedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One save of one adapter."""

    path: str
    folder: str  # name of the folder beside this record
    digest: str  # of the adapter's tensors
    size: int  # bytes on disk
    created_us: int
    expires_us: int | None = None
    user_metadata: dict[str, str] | None = None


class Sampler(msgspec.Struct, frozen=True, kw_only=True):
    """A sampling session; ``path`` is None for the base itself."""

    sampler_id: str
    session_id: str
    path: str | None


class Registry:
    """The records under one folder, all of them also in memory. One process at a time may own the folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._sessions = {item.session_id: item for item in _read_all(root.glob("*/session.json"), Session)}
        self._runs = {item.run_id: item for item in _read_all(root.glob("*/*/run.json"), TrainingRun)}
        saved = [file for kind in Kind for file in root.glob(f"*/*/{kind}/*.json")]
        self._checkpoints = {item.path: item for item in _read_all(saved, SavedCheckpoint)}
        self._samplers = {item.sampler_id: item for item in _read_all(root.glob("*/samplers/*.json"), Sampler)}
        self._sweep()

    def put_session(self, session: Session) -> None:
        """Add or replace a session."""
        _write(self._root / session.session_id / "session.json", session)
        self._sessions[session.session_id] = session

    def session(self, session_id: str) -> Session:
        """Return a session or raise NotFound."""
        return _get(self._sessions, session_id, "session")

    def put_run(self, run: TrainingRun) -> None:
        """Add or replace a training run."""
        _write(self._run_folder(run.run_id) / "run.json", run)
        self._runs[run.run_id] = run

    def run(self, run_id: str) -> TrainingRun:
        """Return a training run or raise NotFound."""
        return _get(self._runs, run_id, "training run")

    def runs(self) -> list[TrainingRun]:
        """Return all training runs, the newest first."""
        return sorted(self._runs.values(), key=lambda run: run.created_us, reverse=True)

    def put_sampler(self, sampler: Sampler) -> None:
        """Add a sampling session."""
        number = sampler.sampler_id.rpartition(":")[2]
        _write(self._root / sampler.session_id / "samplers" / f"{number}.json", sampler)
        self._samplers[sampler.sampler_id] = sampler

    def sampler(self, sampler_id: str) -> Sampler | None:
        """Return a sampling session, or None."""
        return self._samplers.get(sampler_id)

    def new_folder(self, path: TinkerPath) -> Path:
        """Return a folder, not there yet, for a checkpoint to be written into."""
        parent = self._run_folder(path.run_id) / path.kind
        parent.mkdir(parents=True, exist_ok=True)
        return parent / ids.new_id("ckpt")

    def put_checkpoint(self, saved: SavedCheckpoint) -> None:
        """Make a written folder the checkpoint of its path; the one before it is removed."""
        path, before = parse(saved.path), self._checkpoints.get(saved.path)
        parent = self._run_folder(path.run_id) / path.kind
        _write(parent / f"{path.name}.json", saved)
        self._checkpoints[saved.path] = saved
        if before:
            shutil.rmtree(parent / before.folder, ignore_errors=True)

    def checkpoint(self, path: TinkerPath) -> SavedCheckpoint:
        """Return a checkpoint that has not expired, or raise NotFound."""
        saved = _get(self._checkpoints, str(path), "checkpoint")
        if saved.expires_us is not None and saved.expires_us <= ids.now_us():
            self.remove_checkpoint(path)
            raise NotFound(f"checkpoint {path} has expired")
        return saved

    def has_checkpoint(self, path: TinkerPath) -> bool:
        """Tell whether a checkpoint is there."""
        try:
            return bool(self.checkpoint(path))
        except NotFound:
            return False

    def checkpoints(self, run_id: str) -> list[SavedCheckpoint]:
        """Return a run's checkpoints that have not expired, in the order in which they were made."""
        mine = [parse(path) for path in self._checkpoints if path.startswith(f"tinker://{run_id}/")]
        found = [self.checkpoint(path) for path in mine if self.has_checkpoint(path)]
        return sorted(found, key=lambda saved: saved.created_us)

    def folder(self, saved: SavedCheckpoint) -> Path:
        """Return the folder that holds a checkpoint's weights."""
        path = parse(saved.path)
        return self._run_folder(path.run_id) / path.kind / saved.folder

    def remove_checkpoint(self, path: TinkerPath) -> SavedCheckpoint:
        """Delete a checkpoint; raise NotFound when there is none."""
        saved = _get(self._checkpoints, str(path), "checkpoint")
        folder = self.folder(saved)
        (folder.parent / f"{path.name}.json").unlink(missing_ok=True)
        del self._checkpoints[str(path)]
        shutil.rmtree(folder, ignore_errors=True)
        return saved

    def _run_folder(self, run_id: str) -> Path:
        session_id, number = split_run_id(run_id)
        return self._root / session_id / str(number)

    def _sweep(self) -> None:
        """Remove the folders of saves that were cut off, and of checkpoints that were replaced."""
        named = {self.folder(saved) for saved in self._checkpoints.values()}
        for kind in Kind:
            for folder in self._root.glob(f"*/*/{kind}/*/"):
                if folder not in named:
                    shutil.rmtree(folder, ignore_errors=True)


def _get(records: dict[str, T], key: str, what: str) -> T:
    if key not in records:
        raise NotFound(f"there is no {what} {key} here")
    return records[key]


def _read_all(files: Iterable[Path], kind: type[T]) -> list[T]:
    return [_read(file, kind) for file in files]


def _read(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{file} cannot be read ({error}). Restore it from a copy, or delete it.") from None


def _write(file: Path, record: msgspec.Struct) -> None:
    aside = file.with_name(f"{file.name}.{ids.new_id('new')}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out:
            out.write(msgspec.json.encode(record))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(
            f"{file} cannot be written ({error.strerror}). Make room, or give another data folder."
        ) from None

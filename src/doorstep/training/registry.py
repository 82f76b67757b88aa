"""What outlives the process: sessions, training runs, checkpoints and samplers, as JSON files beside their folders.

A record exists when its file does, and files appear whole (written aside, synced, renamed). A checkpoint's file
names the folder that holds its weights, so replacing one is a single rename. Knows folders, never their contents.

Everything belongs to a tenant, the owner of its session. A getter says of what is another's the same as of what is
not there; a checkpoint that its owner published can be read by all. A record that cannot be read is told to its owner
by name, and harms no other.

    SESSION/session.json            SESSION/sampling.jsonl, and
    SESSION/samplers/N.json
    SESSION/N/run.json              SESSION/N/steps.jsonl, which are ``steps``' to write
    SESSION/N/weights/NAME.json     SESSION/N/weights/UNIQUE/…
"""

import logging
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from doorstep import ids
from doorstep.engine.api import LoraSpec
from doorstep.errors import BadInput, NotFound, StoreError, UsageError
from doorstep.training.paths import Kind, TinkerPath, parse, split_run_id

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

LOCAL = "local"  # the tenant of this machine's own user
MAX_TTL_S = 10 * 365 * 86_400
MAX_RECORD = 256 << 10  # bytes; all records are held in memory


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One client program's connection; its models and samplers carry its id."""

    session_id: str
    owner: str = LOCAL
    created_us: int
    sdk_version: str
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None
    project_id: str | None = None
    finished: str | None = None  # ``success``, ``errored`` or ``interrupted``


class TrainingRun(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter that is or was trained."""

    run_id: str
    owner: str = LOCAL
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
    public: bool = False  # other tenants may read it

    @property
    def expired(self) -> bool:
        """Whether its time is over; then it is as if it were not there."""
        return self.expires_us is not None and self.expires_us <= ids.now_us()


class Sampler(msgspec.Struct, frozen=True, kw_only=True):
    """A sampling session; ``path`` is None for the base itself."""

    sampler_id: str
    session_id: str
    path: str | None
    base: str = ""  # the name that the client asked for; records from before have none


class Damaged(msgspec.Struct, frozen=True):
    """A record that cannot be read: which one, and why."""

    name: str
    why: str


class Registry:
    """The records under one folder, all of them also in memory. Making it only reads.

    One process at a time may change the folder; it calls ``sweep`` before it does.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()  # held while a checkpoint comes, changes or goes
        self._damaged: dict[str, Damaged] = {}
        self._sessions: dict[str, Session] = {}
        self._runs: dict[str, TrainingRun] = {}
        self._checkpoints: dict[str, dict[str, SavedCheckpoint]] = {}  # by run, by path
        self._samplers: dict[str, Sampler] = {}
        self._read_all()

    # Sessions

    def put_session(self, session: Session) -> None:
        """Add or replace a session."""
        _write(self._root / session.session_id / "session.json", session)
        self._sessions[session.session_id] = session

    def session(self, session_id: str, tenant: str | None) -> Session:
        """Return a tenant's session or raise NotFound."""
        self._refuse_damaged(session_id, tenant)
        found = self._sessions.get(session_id)
        if found is None or not _is_of(found.owner, tenant):
            raise _not_there("session", session_id)
        return found

    def sessions(self, tenant: str) -> list[Session]:
        """Return a tenant's sessions, the newest first."""
        mine = [session for session in list(self._sessions.values()) if session.owner == tenant]
        return sorted(mine, key=lambda session: session.session_id, reverse=True)

    # Training runs

    def put_run(self, run: TrainingRun) -> None:
        """Add or replace a training run."""
        _write(self._run_folder(run.run_id) / "run.json", run)
        self._runs[run.run_id] = run
        self._damaged.pop(run.run_id, None)

    def run(self, run_id: str, tenant: str | None) -> TrainingRun:
        """Return a tenant's training run or raise NotFound."""
        self._refuse_damaged(run_id, tenant)
        found = self._runs.get(run_id)
        if found is None or not _is_of(found.owner, tenant):
            raise _not_there("training run", run_id)
        return found

    def readable_run(self, run_id: str, tenant: str) -> TrainingRun:
        """Return a training run that is the tenant's or has a published checkpoint, or raise NotFound."""
        if any(saved.public for saved in self._saved(run_id)):
            return self.run(run_id, None)
        return self.run(run_id, tenant)

    def runs(self, tenant: str | None) -> list[TrainingRun]:
        """Return a tenant's training runs (None: all), the newest first."""
        mine = [run for run in list(self._runs.values()) if _is_of(run.owner, tenant)]
        return sorted(mine, key=lambda run: (run.created_us, run.run_id), reverse=True)

    def runs_of(self, session_id: str) -> list[TrainingRun]:
        """Return a session's training runs in their order."""
        found = [run for run in list(self._runs.values()) if run.run_id.startswith(f"{session_id}:train:")]
        return sorted(found, key=lambda run: split_run_id(run.run_id)[1])

    def damaged_runs(self, tenant: str | None) -> list[Damaged]:
        """Return a tenant's training runs (None: all) whose records cannot be read."""
        return [
            found
            for found in list(self._damaged.values())
            if ":train:" in found.name and "/" not in found.name and _is_of(self._owner(found.name), tenant)
        ]

    # Samplers

    def put_sampler(self, sampler: Sampler) -> None:
        """Add a sampling session."""
        number = sampler.sampler_id.rpartition(":")[2]
        _write(self._root / sampler.session_id / "samplers" / f"{number}.json", sampler)
        self._samplers[sampler.sampler_id] = sampler

    def sampler(self, sampler_id: str, tenant: str | None) -> Sampler:
        """Return a tenant's sampling session or raise NotFound."""
        self._refuse_damaged(sampler_id, tenant)
        found = self._samplers.get(sampler_id)
        if found is None or not _is_of(self._owner(found.session_id), tenant):
            raise _not_there("sampling session", sampler_id)
        return found

    def samplers_of(self, session_id: str) -> list[Sampler]:
        """Return a session's sampling sessions."""
        return [sampler for sampler in list(self._samplers.values()) if sampler.session_id == session_id]

    # Checkpoints

    def new_folder(self, path: TinkerPath) -> Path:
        """Return a folder, not there yet, for a checkpoint to be written into."""
        parent = self._run_folder(path.run_id) / path.kind
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritten(parent, error) from None
        return parent / ids.new_id("ckpt")

    def put_checkpoint(self, saved: SavedCheckpoint) -> None:
        """Make a written folder the checkpoint of its path; the one before it is removed."""
        path = parse(saved.path)
        with self._lock:
            mine = self._checkpoints.setdefault(path.run_id, {})
            before = mine.get(saved.path)
            parent = self._run_folder(path.run_id) / path.kind
            _write(parent / f"{path.name}.json", saved)
            mine[saved.path] = saved
            self._damaged.pop(saved.path, None)
            if before and before.folder != saved.folder:
                shutil.rmtree(parent / before.folder, ignore_errors=True)
            self._remove_expired()

    def change_checkpoint(self, path: TinkerPath, tenant: str, **changes: Any) -> None:
        """Change what is noted of a tenant's checkpoint, whatever save is the newest by now; raise NotFound."""
        with self._lock:
            self.put_checkpoint(msgspec.structs.replace(self.own_checkpoint(path, tenant), **changes))

    def checkpoint(self, path: TinkerPath, tenant: str | None) -> SavedCheckpoint:
        """Return a checkpoint that is the tenant's, or published, and has not expired; or raise NotFound."""
        self._refuse_damaged(str(path), tenant)
        saved = self._checkpoints.get(path.run_id, {}).get(str(path))
        if saved is None or saved.expired or not (saved.public or _is_of(self._owner(path.run_id), tenant)):
            raise _not_there("checkpoint", path)
        return saved

    def own_checkpoint(self, path: TinkerPath, tenant: str) -> SavedCheckpoint:
        """Return a checkpoint that the tenant may change, or raise NotFound."""
        if self._owner(path.run_id) != tenant:
            raise _not_there("checkpoint", path)
        return self.checkpoint(path, tenant)

    def has_checkpoint(self, path: TinkerPath) -> bool:
        """Tell whether a checkpoint is there."""
        try:
            return bool(self.checkpoint(path, None))
        except NotFound:
            return False

    def checkpoints(self, run_id: str, tenant: str | None) -> list[SavedCheckpoint]:
        """Return those checkpoints of a run that a tenant may read, in the order in which they were made."""
        own = _is_of(self._owner(run_id), tenant)
        found = [saved for saved in self._saved(run_id) if own or saved.public]
        return sorted(found, key=lambda saved: saved.created_us)

    def all_checkpoints(self, tenant: str | None) -> list[SavedCheckpoint]:
        """Return the checkpoints of a tenant (None: of all), the newest first."""
        mine = [run_id for run_id in list(self._checkpoints) if _is_of(self._owner(run_id), tenant)]
        found = [saved for run_id in mine for saved in self._saved(run_id)]
        return sorted(found, key=lambda saved: saved.created_us, reverse=True)

    def damaged_checkpoints(self, run_id: str, tenant: str) -> list[Damaged]:
        """Return a tenant's checkpoints of a run whose records cannot be read."""
        if self._owner(run_id) != tenant:
            return []
        return [found for name, found in list(self._damaged.items()) if name.startswith(f"tinker://{run_id}/")]

    def bytes_of(self, tenant: str) -> int:
        """Return how much a tenant's checkpoints take on disk."""
        return sum(saved.size for saved in self.all_checkpoints(tenant))

    def folder(self, saved: SavedCheckpoint) -> Path:
        """Return the folder that holds a checkpoint's weights."""
        path = parse(saved.path)
        return self._run_folder(path.run_id) / path.kind / saved.folder

    def files(self, saved: SavedCheckpoint) -> Path:
        """Return the folder that holds a checkpoint's weights, or raise BadInput when it is gone."""
        folder = self.folder(saved)
        if not folder.is_dir():
            raise BadInput(saved.path, "its files are gone from the disk. Restore them from a copy, or delete it.")
        return folder

    def copy_checkpoint(self, source: SavedCheckpoint, target: TinkerPath, expires_us: int | None) -> SavedCheckpoint:
        """Make a checkpoint of the same weights under another path; the files are shared where the disk can."""
        files, folder = self.files(source), self.new_folder(target)
        try:
            shutil.copytree(files, folder, copy_function=_link)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise StoreError(f"{source.path} cannot be copied ({error}). Make room, or save it anew.") from None
        saved = msgspec.structs.replace(
            source,
            path=str(target),
            folder=folder.name,
            created_us=ids.now_us(),
            expires_us=expires_us,
            public=False,
        )
        self.put_checkpoint(saved)
        return saved

    def remove_checkpoint(self, path: TinkerPath) -> SavedCheckpoint:
        """Delete a checkpoint; raise NotFound when there is none."""
        with self._lock:
            saved = self._checkpoints.get(path.run_id, {}).pop(str(path), None)
            if saved is None:
                raise _not_there("checkpoint", path)
            folder = self.folder(saved)
            (folder.parent / f"{path.name}.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return saved

    def remove_damaged(self, path: TinkerPath, tenant: str) -> bool:
        """Delete a tenant's record that cannot be read; tell whether there was one."""
        if str(path) not in self._damaged or self._owner(path.run_id) != tenant:
            return False
        (self._run_folder(path.run_id) / path.kind / f"{path.name}.json").unlink(missing_ok=True)
        del self._damaged[str(path)]
        return True

    def steps_file(self, of: str) -> Path:
        """Return where the operations of a training run, or of a sampler's session, are noted."""
        if ":train:" in of:
            return self._run_folder(of) / "steps.jsonl"
        return self._root / of.partition(":")[0] / "sampling.jsonl"

    def sweep(self) -> None:
        """Remove what nothing refers to: expired checkpoints, and the folders of saves that were cut off or replaced.

        Where a record cannot be read nothing is removed, for a folder may be its.
        """
        self._remove_expired()
        named = {self.folder(saved) for saved in self._all()}
        for kind in Kind:
            for parent in self._root.glob(f"*/*/{kind}"):
                for folder in set(parent.glob("*/")) - named:
                    if not any(self._is_damaged(record) for record in parent.glob("*.json")):
                        shutil.rmtree(folder, ignore_errors=True)

    # How the above is done

    def _read_all(self) -> None:
        for file in self._root.glob("*/session.json"):
            if session := self._read(file, Session, file.parent.name):
                self._sessions[session.session_id] = session
        for file in self._root.glob("*/*/run.json"):
            name = f"{file.parents[1].name}:train:{file.parent.name}"
            if run := self._read(file, TrainingRun, name):
                self._runs[run.run_id] = run
        for file in self._root.glob("*/samplers/*.json"):
            name = f"{file.parents[1].name}:sample:{file.stem}"
            if sampler := self._read(file, Sampler, name):
                self._samplers[sampler.sampler_id] = sampler
        for file in (file for kind in Kind for file in self._root.glob(f"*/*/{kind}/*.json")):
            if saved := self._read(file, SavedCheckpoint, self._path_of(file)):
                self._checkpoints.setdefault(parse(saved.path).run_id, {})[saved.path] = saved

    def _read(self, file: Path, kind: type[T], name: str) -> T | None:
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            where = file.relative_to(self._root)
            log.warning("%s is left out: %s", where, error)
            self._damaged[name] = Damaged(name, f"its record {where} cannot be read ({error})")
            return None

    def _path_of(self, record: Path) -> str:
        session_id, number, kind = record.parts[-4:-1]
        return f"tinker://{session_id}:train:{number}/{kind}/{record.stem}"

    def _is_damaged(self, record: Path) -> bool:
        return self._path_of(record) in self._damaged

    def _refuse_damaged(self, name: str, tenant: str | None) -> None:
        found = self._damaged.get(name)
        if found and _is_of(self._owner(name.removeprefix("tinker://").partition("/")[0]), tenant):
            raise BadInput(name, f"{found.why}. Restore it from a copy, or delete it.")

    def _owner(self, name: str) -> str | None:
        """Return whose a session, run or sampler is; its id begins with the session's."""
        if run := self._runs.get(name):
            return run.owner
        session = self._sessions.get(name.partition(":")[0])
        return session.owner if session else None

    def _all(self) -> list[SavedCheckpoint]:
        return [saved for mine in list(self._checkpoints.values()) for saved in list(mine.values())]

    def _remove_expired(self) -> None:
        for saved in self._all():
            if saved.expired:
                with suppress(NotFound):  # another thread was faster
                    self.remove_checkpoint(parse(saved.path))

    def _saved(self, run_id: str) -> list[SavedCheckpoint]:
        return [saved for saved in list(self._checkpoints.get(run_id, {}).values()) if not saved.expired]

    def _run_folder(self, run_id: str) -> Path:
        session_id, number = split_run_id(run_id)
        return self._root / session_id / str(number)


def expiry(ttl_seconds: int | None) -> int | None:
    """Return the moment that a time to live ends, in microseconds; None never does."""
    if ttl_seconds is None:
        return None
    if not 0 < ttl_seconds <= MAX_TTL_S:
        raise UsageError(f"ttl_seconds is {ttl_seconds}; give 1 to {MAX_TTL_S} (10 years), or none for no end")
    return ids.now_us() + ttl_seconds * 1_000_000


def _is_of(owner: str | None, tenant: str | None) -> bool:
    return tenant is None or owner == tenant


def _not_there(what: str, name: object) -> NotFound:
    return NotFound(f"there is no {what} {name} here")


def _link(source: str, target: str) -> None:
    """Share a file's bytes, which no save ever changes; copy it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write(file: Path, record: msgspec.Struct) -> None:
    data = msgspec.json.encode(record)
    if len(data) > MAX_RECORD:
        raise UsageError(f"user_metadata and what else is noted take {len(data)} bytes; {MAX_RECORD} are kept")
    aside = file.with_name(f"{file.name}.{ids.new_id('new')}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _unwritten(file, error) from None


def _unwritten(file: Path, error: OSError) -> StoreError:
    return StoreError(f"{file} cannot be written ({error.strerror}). Make room, or give another data folder.")

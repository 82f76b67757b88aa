"""Names of checkpoints: ``tinker://RUN/KIND/NAME`` and what may stand in its segments. Touches no disk.

Every accepted segment is safe as a file name on its own: no separator, no leading dot.
"""

import re
from enum import StrEnum

import msgspec

from doorstep.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,127}", re.ASCII)
_RUN_ID = re.compile(r"([A-Za-z0-9_-]{1,80}):train:([0-9]{1,9})", re.ASCII)
_SCHEME = "tinker://"


class Kind(StrEnum):
    """What a checkpoint holds; the second segment of its path."""

    WEIGHTS = "weights"  # adapter and optimizer: training goes on from it
    SAMPLER = "sampler_weights"  # adapter alone
    EXTERNAL = "external_weights"  # adapter alone, to be taken away: as files, encrypted or not


class TinkerPath(msgspec.Struct, frozen=True):
    """A checkpoint's address in its three segments."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The part after the run id, as the REST API calls a checkpoint."""
        return f"{self.kind}/{self.name}"


def parse(path: str) -> TinkerPath:
    """Read ``tinker://RUN/KIND/NAME``; raise UsageError for anything else."""
    segments = path.removeprefix(_SCHEME).split("/")
    if not path.startswith(_SCHEME) or len(segments) != 3:
        raise UsageError(f"{path!r} is not a checkpoint path. It has the form tinker://RUN_ID/weights/NAME.")
    run_id, kind, name = segments
    if kind not in list(Kind):
        raise UsageError(f"{path!r}: {kind!r} is no kind of checkpoint here. There are: {', '.join(Kind)}.")
    split_run_id(run_id)
    return TinkerPath(run_id, Kind(kind), checked_name(name))


def checkpoint_path(run_id: str, kind: str, name: str) -> TinkerPath:
    """Return the path of these segments; raise UsageError when one of them cannot be."""
    return parse(f"{_SCHEME}{run_id}/{kind}/{name}")


def run_id_of(session_id: str, number: int) -> str:
    """Return the id that the SDK, too, gives to a session's ``number``-th model."""
    return f"{session_id}:train:{number}"


def split_run_id(run_id: str) -> tuple[str, int]:
    """Return session id and model number of ``SESSION:train:N``; raise UsageError for anything else."""
    match = _RUN_ID.fullmatch(run_id)
    if match is None:
        raise UsageError(f"{run_id!r} is not a training run's id. It has the form SESSION:train:NUMBER.")
    return match[1], int(match[2])


def checked_name(name: str) -> str:
    """Return a checkpoint's name as it is, or raise UsageError saying what a name may be."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot name a checkpoint. Use 1 to 128 letters, digits and . _ + = @ -, not starting with a dot."
        )
    return name

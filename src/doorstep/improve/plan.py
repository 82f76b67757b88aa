"""The plan of an improvement and how far it got: frozen before it starts, kept on disk, resumed after a kill.

The plan fixes every number that training depends on, so that a resumed improvement ends with the same
adapter, bit for bit, as one that was never interrupted. A time budget therefore becomes a number of steps
here, once, by arithmetic, and never by a clock.
"""

import os
import re
from pathlib import Path

import msgspec

from doorstep.errors import NotFound, UsageError

OUTCOME = "outcome.json"
DEFAULT_BUDGET_S = 240.0
FIXED_S = 40.0  # of measuring
REFERENCE_SFT_STEP_S = 0.45  # one step of the shipped base on two cores of a common server
REFERENCE_RL_STEP_S = 2.5
SFT_EXAMPLES = 5600  # about how many answers SFT reads: few records are read more often
MAX_RL_STEPS = 400


class SftPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Supervised fine-tuning: cross-entropy on the recorded answers, rate falling linearly to zero."""

    epochs: int = 2
    batch: int = 32  # records per step
    learning_rate: float = 1.2e-2


class RlPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Policy gradient with group baseline, no division by the deviation (Dr. GRPO, arXiv 2503.20783),
    and PPO's clip with a higher upper bound (DAPO, arXiv 2503.14476).
    """

    steps: int = 40
    prompts: int = 24  # groups per step
    samples: int = 8  # per group
    learning_rate: float = 3e-3
    temperature: float = 1.0
    clip_low: float = 0.8
    clip_high: float = 1.28
    exact_bonus: float = 1.0  # reward = mean of the fields + this when all is right


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One improvement of one workflow, completely determined."""

    job_id: str
    workflow: str
    folder: str  # of the workflow, for going on from anywhere
    workflow_version: str
    base: str
    base_digest: str  # training goes on from other weights to another adapter
    dataset_id: str
    dataset_digest: str
    seed: int = 0
    rank: int = 8
    grad_clip: float = 1.0
    checkpoint_every: int = 10  # steps
    sft: SftPlan = SftPlan()
    rl: RlPlan = RlPlan()
    created_us: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The last safe point: ``step`` steps of ``stage`` are in ``state``; ``samplers`` are the finished stages."""

    stage: str = ""
    step: int = 0
    state: str | None = None
    samplers: dict[str, str] = {}
    cpu_seconds: dict[str, float] = {}
    seconds: dict[str, float] = {}
    serving_cpu_seconds: dict[str, float] = {}  # of answering the held-out records, by variant


class Job:
    """The folder of one improvement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)

    @classmethod
    def create(cls, root: Path, plan: Plan) -> "Job":
        """Write the plan down, before anything is done."""
        folder = root / plan.job_id
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "plan.json", msgspec.json.encode(plan))
        return cls(folder)

    @classmethod
    def latest(cls, root: Path, workflow: str | None) -> "Job":
        """Return the newest unfinished job, of one workflow or of any."""
        for plan in sorted(root.glob("*/plan.json"), reverse=True):
            job = cls(plan.parent)
            if workflow in (None, job.plan.workflow) and not job.finished:
                return job
        raise NotFound("No unfinished improvement to resume. Start one: doorstep improve NAME")

    @property
    def finished(self) -> bool:
        """Whether its outcome is written down: the last thing that is done."""
        return (self.folder / OUTCOME).exists()

    def progress(self) -> Progress:
        """Return the last safe point."""
        path = self.folder / "progress.json"
        return msgspec.json.decode(path.read_bytes(), type=Progress) if path.exists() else Progress()

    def save(self, progress: Progress) -> None:
        """Move the safe point forward."""
        write_atomic(self.folder / "progress.json", msgspec.json.encode(progress))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that after a kill at any moment it is wholly old or wholly new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def parse_budget(text: str) -> float:
    """Return the seconds of ``90s``, ``5m`` or ``1h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if not match:
        raise UsageError(f"--budget {text}: give a time such as 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def sft_plan(records: int) -> SftPlan:
    """Plan SFT on a number of training records: 2 to 8 epochs."""
    return SftPlan(epochs=max(2, min(8, SFT_EXAMPLES // max(1, records))))


def sft_steps(plan: SftPlan, records: int) -> int:
    """Return how many steps SFT takes on a number of records."""
    return plan.epochs * -(-records // min(plan.batch, records))


def rl_steps_within(seconds: float, sft: int) -> int:
    """Return how many RL steps fit beside ``sft`` steps and measuring, on the reference machine; at least 5."""
    left = seconds - FIXED_S - sft * REFERENCE_SFT_STEP_S
    return max(5, min(MAX_RL_STEPS, int(left / REFERENCE_RL_STEP_S)))

"""What an improvement ended with, as values: read without the training client, which takes seconds to import."""

import msgspec

from doorstep.evaluation.evaluate import Evaluation
from doorstep.grading.calibration import Calibration
from doorstep.types import Decision, ModelVersion


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One rung, measured on the held-out split. ``seconds`` and ``cpu_seconds`` are those of making it."""

    name: str
    model: str
    evaluation: Evaluation
    seconds: float
    cpu_seconds: float
    cost_usd: float  # of making it
    serving_cpu_seconds: float  # of answering the held-out records, all of Doorstep's processes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an improvement ended with."""

    rungs: list[Rung]
    candidate: ModelVersion
    decision: Decision
    calibration: Calibration
    left_out: list[str] = []  # training records that could not be rendered, and why

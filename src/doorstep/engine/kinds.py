"""What each loss takes, by its Tinker names: inputs of a row, settings, and what stands for those left out. No tensors.

The training service checks a request with it before the engine is asked, and the engine checks its rows.
"""

import math
from collections.abc import Mapping

import msgspec

from doorstep.engine import graph
from doorstep.engine.api import Loss, TrainRow
from doorstep.errors import EngineError


class Field(msgspec.Struct, frozen=True):
    """An input. ``default`` stands for it in rows that have none; None: every row must have it.

    ``rank`` 0 is one number a row, 1 one a position, 2 one a target; rank 1 and 2 are the same at width 1.
    """

    rank: int
    default: float | None = None

    def length(self, row: TrainRow) -> int:
        """Return how many numbers a row must have of it."""
        return (1, len(row.tokens), len(row.targets))[self.rank]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A loss. ``gate`` is the input that is zero where a position does not count; None: all count.

    ``settings`` have their defaults; those of ``tokenwise`` may also be inputs, one number a position. ``wide`` losses
    take several targets a position. ``whole`` ones need all positions of a row at once.
    """

    inputs: dict[str, Field]
    settings: dict[str, float] = {}
    tokenwise: frozenset[str] = frozenset()
    gate: str | None = None
    wide: bool = False
    whole: bool = False


def _kind(
    *inputs: str, gate: str | None = "advantages", whole: bool = False, tokenwise: bool = True, **settings: float
) -> Kind:
    return Kind(
        inputs={name: Field(1) for name in inputs},
        settings=settings,
        tokenwise=frozenset(settings if tokenwise else ()),
        gate=gate,
        whole=whole,
    )


_POLICY = ("logprobs", "advantages")
# DRO's beta is in its documented example; the SDK names no default. GSPO's bounds are those of its paper
# (arXiv 2507.18071, section 5.1: 3e-4 below, 4e-4 above).
KINDS: dict[str, Kind] = {
    "cross_entropy": Kind(inputs={"weights": Field(2, 1.0)}, gate="weights", wide=True),
    "importance_sampling": _kind(*_POLICY),
    "ppo": _kind(*_POLICY, clip_low_threshold=0.8, clip_high_threshold=1.2),
    "cispo": _kind(*_POLICY, clip_low_threshold=0.0, clip_high_threshold=4.0),
    "dro": _kind(*_POLICY, gate=None, tokenwise=False, beta=0.05),
    "gspo": _kind(
        *_POLICY, "sequence_ratio_mask", whole=True, clip_low_threshold=1 - 3e-4, clip_high_threshold=1 + 4e-4
    ),
    "stable_reinforce": _kind(*_POLICY, "sampled", gate="sampled", tokenwise=False, kl_coeff=0.0),
}
NAMES = (*KINDS, "custom")

SURROGATE = (
    "loss stable_reinforce: its formula is not published. This server trains a surrogate on the log-probabilities "
    "recorded at sampling: -sum(min(ratio, 1) * advantage * logprob), the truncated ratio held constant, plus "
    "kl_coeff times the estimate ratio - 1 - log(ratio) of the divergence from the sampler."
)


def kind(loss: Loss) -> Kind:
    """Return what a loss takes; EngineError when there is none of that name, or it has no such setting."""
    if loss.name == "custom":
        if loss.graph is None:
            raise EngineError("loss custom needs its graph; make it with create_custom_loss")
        inputs = {each.name: Field(each.rank) for each in graph.read(loss.graph).inputs[1:]}
        found = Kind(inputs=inputs, wide=True, whole=True)
    elif loss.name in KINDS:
        found = KINDS[loss.name]
    else:
        raise EngineError(f"loss {loss.name!r} is not served here; there are {', '.join(NAMES)}")
    if unknown := set(loss.config) - set(found.settings):
        known = ", ".join(found.settings) or "no settings"
        raise EngineError(f"loss {loss.name} has no setting {', '.join(sorted(unknown))}; it takes {known}")
    for name, value in loss.config.items():
        if not math.isfinite(value):
            raise EngineError(f"loss {loss.name}: {name} must be a finite number, not {value}")
    return found


def fields(loss: Loss) -> dict[str, Field]:
    """Return all inputs of a loss, a setting that may be one among them with its value as the default."""
    found = kind(loss)
    return found.inputs | {name: Field(1, loss.config.get(name, found.settings[name])) for name in found.tokenwise}


def problem(row: TrainRow, loss: Loss, known: Mapping[str, Field]) -> str | None:
    """Say what of a row's targets and inputs the loss cannot take; ``known`` are its ``fields``."""
    tokens, width = len(row.tokens), row.width
    if width < 1 or len(row.targets) != tokens * width:
        return f"targets has {len(row.targets)} entries, tokens has {tokens}; there must be {width} a token"
    if width > 1 and not (loss.name == "custom" or KINDS[loss.name].wide):
        return f"targets has {width} entries a position; loss {loss.name} takes one"
    for name, field in known.items():
        values = row.inputs.get(name)
        if values is None:
            if field.default is None:
                return f"{name} is missing; loss {loss.name} needs {', '.join(needed(known))}"
            continue
        if len(values) != field.length(row):
            return f"{name} has {len(values)} entries, tokens has {tokens}; there must be {field.length(row)}"
        if not all(map(math.isfinite, values)):
            return f"{name} has an entry that is not a finite number"
    if loss.name == "gspo" and not any(row.inputs["sequence_ratio_mask"]):
        return "sequence_ratio_mask marks no position; mark the sampled ones with 1"
    return None


def needed(known: Mapping[str, Field]) -> list[str]:
    """Return the names of the inputs that every row must have."""
    return [name for name, field in known.items() if field.default is None]

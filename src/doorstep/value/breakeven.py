"""Break-even: how many runs it takes until a saving per run has paid back what was spent once."""

import math

import msgspec


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """``runs`` until the spending is paid back; ``None`` with the reason in ``why`` when that is never or not known."""

    saving_per_run_microusd: float | None
    runs: int | None
    why: str | None = None


def break_even(
    spent_microusd: int, incumbent_per_run_microusd: float | None, own_per_run_microusd: float | None
) -> BreakEven:
    """Compare the cost of a run on the incumbent with one's own, both micro-dollars, ``None`` when not known."""
    if incumbent_per_run_microusd is None or own_per_run_microusd is None:
        which = "the incumbent" if incumbent_per_run_microusd is None else "our own model"
        return BreakEven(saving_per_run_microusd=None, runs=None, why=f"the cost of a run on {which} is not known")
    saving = incumbent_per_run_microusd - own_per_run_microusd
    if saving <= 0:
        return BreakEven(saving_per_run_microusd=saving, runs=None, why="a run on our own model saves nothing")
    return BreakEven(saving_per_run_microusd=saving, runs=math.ceil(spent_microusd / saving))

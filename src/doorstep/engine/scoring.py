"""Log-probabilities of a text from its hidden states: each token's own, the likeliest, those asked for, and draws.

Works on any runtime's hidden states and head, a few positions at a time: logits of a large vocabulary are never held
together.
"""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from doorstep.engine.api import ModelInfo, ScoreParams, Scores
from doorstep.engine.choice import invert, top
from doorstep.engine.requests import check_temperature, check_tokens, sample_key, uniform
from doorstep.errors import EngineError

POSITIONS = 64  # whose logits are held at once: 40 MB at 150 000 ids


def check_score(tokens: list[int], params: ScoreParams, info: ModelInfo) -> None:
    """Raise an EngineError that names what cannot be scored."""
    if not 1 <= len(tokens) <= info.max_context:
        raise EngineError(f"{len(tokens)} tokens to score; {info.name} takes 1 to {info.max_context}")
    check_tokens("the text", tokens, info)
    if params.last is not None and params.last < 0:
        raise EngineError(f"last is {params.last}; it is a number of positions, 0 or more")
    if not (0 <= params.top <= info.vocabulary and params.alternatives >= 0 and params.width >= 0):
        raise EngineError(f"top must be 0 to {info.vocabulary}; width and alternatives must be 0 or more")
    check_temperature(params.temperature)
    if len(params.targets) != (len(tokens) - 1) * params.width:
        wanted = f"{params.width} for each of {len(tokens) - 1} positions"
        raise EngineError(f"there are {len(params.targets)} targets; there must be {wanted}")
    check_tokens("targets", [target for target in params.targets if target != -1], info)


def score_hidden(hidden: Tensor, logits: Callable[[Tensor], Tensor], tokens: list[int], params: ScoreParams) -> Scores:
    """Score ``tokens`` (N) from the normalised hidden states, (N - 1, D), of all but the last.

    ``logits`` is the head: it makes (n, V) of (n, D).
    """
    unscored = 0 if params.last is None else max(0, len(tokens) - 1 - params.last)
    seed = secrets.randbits(63) if params.seed is None else params.seed
    keys = [sample_key(tokens, seed, index) for index in range(params.alternatives)]
    nothing: list[list[tuple[int, float]]] = [[] for _ in range(unscored)]
    logprobs: list[float | None] = [None] * (unscored + 1)
    targets = [math.nan] * (unscored * params.width)
    likeliest, alternatives = list(nothing), list(nothing)
    for start in range(unscored, len(tokens) - 1, POSITIONS):
        scores = logits(hidden[start : start + POSITIONS]).float()
        log_p = torch.log_softmax(scores, dim=-1)
        stop = start + len(scores)
        logprobs += _pick(log_p, tokens[start + 1 : stop + 1], 1)
        if params.width:
            targets += _pick(log_p, params.targets[start * params.width : stop * params.width], params.width)
        if params.top:
            likeliest += top(log_p, params.top)
        if keys:
            draws = [[uniform(key, place) for key in keys] for place in range(start, stop)]
            alternatives += _draw(scores, log_p, draws, params.temperature)
    return Scores(
        logprobs=logprobs,
        top=likeliest if params.top else [],
        targets=targets,
        alternatives=alternatives if keys else [],
    )


def _pick(log_p: Tensor, ids: list[int], width: int) -> list[float]:
    """Return the log-probabilities of ``width`` ids a row, NaN for -1."""
    wanted = torch.tensor(ids, device=log_p.device).view(-1, width)
    found: list[float] = log_p.gather(1, wanted.clamp(min=0)).masked_fill(wanted < 0, torch.nan).flatten().tolist()
    return found


def _draw(scores: Tensor, log_p: Tensor, draws: list[list[float]], temperature: float) -> list[list[tuple[int, float]]]:
    if temperature:
        at = torch.tensor(draws, device=scores.device)
        ids = invert(torch.softmax(scores / temperature, dim=-1), at)
    else:
        ids = scores.argmax(dim=-1, keepdim=True).expand(-1, len(draws[0]))
    pairs = zip(ids.tolist(), log_p.gather(1, ids).tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in pairs]

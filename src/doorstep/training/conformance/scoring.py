"""Checks of what a sampling client says about a prompt's tokens, and of the likeliest ones."""

from typing import Any

import numpy as np

from doorstep.training.conformance.checks import check, expect, near
from doorstep.training.conformance.sampling import SAMPLER_BOUND
from doorstep.training.conformance.session import TOKENS, Session, array, datum, done, prompt, sampling, scores

SAMPLE = "SamplingClient.sample"


@check("SamplingClient.compute_logprobs")
def _compute(session: Session) -> None:
    got = done(session.sampler.compute_logprobs(prompt()))
    expect(len(got) == len(TOKENS), f"{len(got)} log-probabilities for {len(TOKENS)} tokens")
    expect(got[0] is None, f"the first token has nothing before it, yet {got[0]}")
    near(got[1:], scores(session.trainer, [datum()])[0], "sampler and trainer", SAMPLER_BOUND)


@check("prompt_logprobs come with a sample")
def _with_sample(session: Session) -> None:
    got = _ask(session, include_prompt_logprobs=True).prompt_logprobs
    expect(got is not None and got[0] is None, f"prompt_logprobs begin with {got and got[0]}, not None")
    near(got[1:], _prompt(session), "log-probabilities")


@check("prompt_logprobs are left out unless asked for")
def _not_asked(session: Session) -> None:
    expect(_ask(session).prompt_logprobs is None, "there are prompt_logprobs, which nobody asked for")


@check("prompt_logprobs_last_n scores the end only", f"{SAMPLE}:prompt_logprobs_last_n")
def _last_n(session: Session) -> None:
    got = done(session.sampler.compute_logprobs(prompt(), prompt_logprobs_last_n=3))
    expect(got[:-3] == [None] * (len(TOKENS) - 3), f"before the last three there is {got[:-3]}")
    near(got[-3:], _prompt(session)[-3:], "the last three")


@check("topk_prompt_logprobs: the likeliest tokens at each position", f"{SAMPLE}:topk_prompt_logprobs")
def _topk_prompt(session: Session) -> None:
    rows = _ask(session, include_prompt_logprobs=True, topk_prompt_logprobs=4).topk_prompt_logprobs
    expect(len(rows) == len(TOKENS) and not rows[0], f"{len(rows)} rows, the first {rows[0]}")
    for row, own in zip(rows[1:], _prompt(session), strict=True):
        _likeliest(row, 4)
        expect(row[0][1] >= own - SAMPLER_BOUND, "a prompt token is likelier than the likeliest")


@check("topk_sample_logprobs: of each token drawn", f"{SAMPLE}:topk_sample_logprobs")
def _topk_sample(session: Session) -> None:
    parameters = sampling(5, temperature=0.0, stop=[])
    answer = done(session.sampler.sample(prompt(), 1, parameters, topk_sample_logprobs=3))
    (one,) = answer.sequences
    rows = one.topk_logprobs
    expect(rows is not None and len(rows) == 5, f"{rows and len(rows)} rows for 5 tokens")
    for row, own in zip(rows, one.logprobs, strict=True):
        _likeliest(row, 3)
        near(row[0][1], own, "the likeliest token and the greedy one")


@check("target_prompt_logprobs: of the ids that are named", f"{SAMPLE}:target_prompt_logprobs")
def _targets(session: Session) -> None:
    import tinker

    ids = np.array([[token, -1] for token in TOKENS[1:]])
    targets = tinker.TensorData(data=ids.flatten(), dtype="int64", shape=list(ids.shape))
    got = array(_ask(session, target_prompt_logprobs=targets).target_prompt_logprobs)
    expect(got.shape == ids.shape, f"shape {list(got.shape)}, not {list(ids.shape)}")
    near(got[:, 0], _prompt(session), "log-probabilities", SAMPLER_BOUND)
    expect(not got[:, 1].any(), "cells of -1 are not 0")


@check("target_prompt_logprobs: sparse", f"{SAMPLE}:target_prompt_logprobs")
def _sparse_targets(session: Session) -> None:
    import tinker

    rows = len(TOKENS) - 1
    crow, columns = [0] * rows + [1], [0]
    place = {"shape": [rows, 4], "sparse_crow_indices": crow, "sparse_col_indices": columns}
    targets = tinker.TensorData(data=[TOKENS[-1]], dtype="int64", **place)
    got = _ask(session, target_prompt_logprobs=targets).target_prompt_logprobs
    near(got.data, _prompt(session)[-1:], "the one log-probability", SAMPLER_BOUND)


@check("prompt_alt_tokens_k: other tokens drawn at each position", f"{SAMPLE}:prompt_alt_tokens_k")
def _alternatives(session: Session) -> None:
    import tinker

    answer = _ask(session, prompt_alt_tokens_k=3)
    tokens, values = (array(one) for one in (answer.prompt_alt_tokens.tokens, answer.prompt_alt_tokens.logprobs))
    expect(tokens.shape == values.shape == (len(TOKENS) - 1, 3), f"shapes {tokens.shape} and {values.shape}")
    targets = tinker.TensorData(data=tokens.flatten().astype(int), dtype="int64", shape=list(tokens.shape))
    scored = array(_ask(session, target_prompt_logprobs=targets).target_prompt_logprobs)
    near(values, scored, "log-probabilities", SAMPLER_BOUND)


def _likeliest(row: list[tuple[int, float]], count: int) -> None:
    values = [value for _, value in row]
    expect(len(row) == count and len({token for token, _ in row}) == count, f"{row}: not {count} tokens")
    expect(values == sorted(values, reverse=True), f"{values} do not descend")
    expect(np.exp(values).sum() <= 1.001, f"probabilities add up to {np.exp(values).sum():.4f}")


def _ask(session: Session, **options: Any) -> Any:
    return done(session.sampler.sample(prompt(), 1, sampling(1), **options))


def _prompt(session: Session) -> list[float]:
    return list(done(session.sampler.compute_logprobs(prompt()))[1:])

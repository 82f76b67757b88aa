"""Scoring: likeliest, chosen and drawn alternatives at each position of a text."""

import math
from collections import Counter

import pytest
import torch
from engine_use import tokens

from doorstep.engine.api import SampleParams, ScoreParams, Token
from doorstep.engine.scoring import POSITIONS, score_hidden
from doorstep.errors import EngineError

TEXT = tokens(150, 4)


@pytest.fixture
def log_p(model) -> torch.Tensor:
    """The log-probabilities by ``transformers``, (149, V)."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([TEXT])).logits[0, :-1], dim=-1)


async def test_log_probabilities_are_those_of_transformers(engine, log_p):
    scores = await engine.score(None, TEXT)
    assert scores.logprobs[0] is None
    expected = log_p.gather(1, torch.tensor(TEXT[1:])[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(scores.logprobs[1:]), expected, rtol=0, atol=2e-5)
    assert (scores.top, scores.targets, scores.alternatives) == ([], [], [])


async def test_the_likeliest_are_told_at_each_position(engine, log_p):
    scores = await engine.score(None, TEXT, ScoreParams(top=3))
    values, ids = log_p.topk(3)
    assert [[token for token, _ in row] for row in scores.top] == ids.tolist()
    told = torch.tensor([[logprob for _, logprob in row] for row in scores.top])
    torch.testing.assert_close(told, values, rtol=0, atol=2e-5)


async def test_targets_are_told_as_asked_and_minus_one_is_none(engine, log_p):
    asked = [token for place in range(149) for token in (place % 96, -1)]
    scores = await engine.score(None, TEXT, ScoreParams(targets=asked, width=2))
    told = torch.tensor(scores.targets).view(149, 2)
    assert told[:, 1].isnan().all()
    expected = log_p.gather(1, (torch.arange(149) % 96)[:, None])
    torch.testing.assert_close(told[:, :1], expected, rtol=0, atol=2e-5)


async def test_only_the_last_positions_are_scored_where_asked(engine):
    whole = await engine.score(None, TEXT, ScoreParams(top=2, targets=[1] * 149, width=1, alternatives=2, seed=3))
    part = await engine.score(
        None, TEXT, ScoreParams(top=2, targets=[1] * 149, width=1, alternatives=2, seed=3, last=70)
    )
    assert part.logprobs == [None] * 80 + whole.logprobs[80:]
    assert part.top == [[]] * 79 + whole.top[79:]
    assert part.alternatives == [[]] * 79 + whole.alternatives[79:]
    assert part.targets[79:] == whole.targets[79:]
    assert all(map(math.isnan, part.targets[:79]))


async def test_alternatives_are_seeded_draws_at_the_temperature(engine):
    hidden = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(POSITIONS + 9, -1)
    params = ScoreParams(alternatives=100, temperature=0.5, seed=1)
    scores = score_hidden(hidden, lambda each: each, [0] * (POSITIONS + 10), params)
    found = Counter(token for row in scores.alternatives for token, _ in row)
    weights = [0.25, 0.09, 0.04]
    for token, weight in enumerate(weights):
        assert found[token] / found.total() == pytest.approx(weight / sum(weights), abs=0.02)
    assert dict(scores.alternatives[0])[0] == pytest.approx(math.log(0.5))
    assert scores == score_hidden(hidden, lambda each: each, [0] * (POSITIONS + 10), params)


async def test_at_temperature_zero_alternatives_are_the_likeliest(engine):
    scores = await engine.score(None, TEXT, ScoreParams(top=1, alternatives=2, temperature=0.0))
    assert scores.alternatives == [row * 2 for row in scores.top]


async def test_a_scored_prompt_need_not_be_read_again(engine):
    await engine.score(None, TEXT)
    events = [event async for event in engine.sample(None, TEXT, SampleParams(max_tokens=1))]
    assert isinstance(events[0], Token)
    assert events[1].cached == 128


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (ScoreParams(last=-1), "last is -1"),
        (ScoreParams(top=97), "top must be 0 to 96"),
        (ScoreParams(targets=[1], width=1), "there are 1 targets; there must be 1 for each of 149 positions"),
        (ScoreParams(targets=[96] * 149, width=1), "targets has the id 96"),
        (ScoreParams(alternatives=1, temperature=float("inf")), "temperature is inf"),
    ],
)
async def test_what_cannot_be_scored_is_refused(engine, params, says):
    with pytest.raises(EngineError, match=says):
        await engine.score(None, TEXT, params)

"""Choosing a token: penalties, bias, min-p, what is told beside it, and what is refused."""

from collections import Counter

import pytest
import tiny_models
import torch
from engine_use import sample, tokens

from doorstep.engine.api import SampleParams, Token
from doorstep.engine.choice import Wish, choose
from doorstep.errors import EngineError

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


def counts(params: SampleParams, count: int, **wish) -> Counter[int]:
    draws = [(index + 0.5) / count for index in range(count)]
    return Counter(choose(LOGITS.expand(count, -1), [Wish(params, draw, **wish) for draw in draws]).ids)


def greedy(scores: list[float], **params) -> int:
    """The likeliest token after 2 was the prompt and 0, 0, 1 were sampled."""
    wish = Wish(SampleParams(max_tokens=1, temperature=0.0, **params), 0.5, prompt=[2], sampled=[0, 0, 1])
    return choose(torch.tensor([scores]), [wish]).ids[0]


def test_min_p_is_a_part_of_the_likeliest():
    assert counts(SampleParams(max_tokens=1, min_p=0.6), 70) == {1: 40, 3: 30}
    assert counts(SampleParams(max_tokens=1, min_p=1.0), 9) == {1: 9}


def test_presence_counts_once_and_frequency_each_time():
    assert greedy([3.0, 2.5, 0.0, 2.1], presence_penalty=1.0) == 3
    assert greedy([3.0, 2.5, 0.0, 1.0], frequency_penalty=0.5) == 0  # 2.0 = 2.0: the first
    assert greedy([3.0, 2.6, 0.0, 1.0], frequency_penalty=0.5) == 1
    assert greedy([0.0, 0.0, 1.0, 0.9], presence_penalty=2.0) == 2  # the prompt does not count


def test_the_repetition_penalty_counts_the_prompt_and_divides_or_multiplies():
    assert greedy([0.0, 0.0, 2.0, 1.5], repetition_penalty=1.5) == 3
    assert greedy([-1.0, -1.0, -1.0, -1.5], repetition_penalty=2.0) == 3
    assert greedy([-1.0, -1.0, -1.0, -1.5], repetition_penalty=1.2) == 0


def test_a_bias_and_a_mask_change_the_choice_but_not_the_log_probability():
    for wish in (
        Wish(SampleParams(max_tokens=1, logit_bias={0: 100.0}), 0.5),
        Wish(SampleParams(max_tokens=1), 0.5, allowed=bytes([0b0001])),
    ):
        chosen = choose(LOGITS[None], [wish])
        assert chosen.ids == [0]
        assert chosen.logprobs[0] == pytest.approx(float(LOGITS[0]))


def test_the_likeliest_are_told_best_first():
    wishes = [Wish(SampleParams(max_tokens=1, top_logprobs=count, temperature=2.0), 0.1) for count in (2, 0, 4)]
    first, second, third = choose(LOGITS.expand(3, -1), wishes).top
    assert [each for each, _ in first] == [1, 3]
    assert second == []
    assert [logprob for _, logprob in third] == pytest.approx(LOGITS.sort(descending=True).values.tolist())


def test_log_probabilities_are_told_at_the_temperature_where_asked():
    params = SampleParams(max_tokens=1, temperature=2.0, top_k=1, top_logprobs=1, tempered=True)
    chosen = choose(LOGITS[None], [Wish(params, 0.5)])
    expected = torch.log_softmax(LOGITS / 2, dim=-1)[1]
    assert chosen.logprobs[0] == chosen.top[0][0][1] == pytest.approx(float(expected))
    cold = SampleParams(max_tokens=1, temperature=0.0, tempered=True)
    assert choose(LOGITS[None], [Wish(cold, 0.5)]).logprobs[0] == pytest.approx(float(LOGITS[1]))


async def test_the_engine_tells_the_likeliest_of_each_token(engine):
    params = SampleParams(max_tokens=5, temperature=0.0, top_logprobs=3, stop=[])
    told = [event async for event in engine.sample(None, tokens(9, 1), params) if isinstance(event, Token)]
    assert [event.top[0] for event in told] == [(event.id, event.logprob) for event in told]
    assert {len(event.top) for event in told} == {3}


async def test_penalties_go_on_over_the_whole_sample(engine):
    params = SampleParams(max_tokens=60, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, stop=[])
    (found,) = await sample(engine, None, tokens(9, 1), params)
    (plain,) = await sample(engine, None, tokens(9, 1), SampleParams(max_tokens=60, temperature=0.0, stop=[]))
    assert len({token for token, _ in found}) > len({token for token, _ in plain})


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; it must be -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"logit_bias": {tiny_models.VOCABULARY: 1.0}}, "logit_bias has the id 96"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias has a value that is not a finite number"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
    ],
)
async def test_nonsense_is_refused(engine, params, says):
    with pytest.raises(EngineError, match=says):
        await sample(engine, None, [1], SampleParams(max_tokens=1, **params))

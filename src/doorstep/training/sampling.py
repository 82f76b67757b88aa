"""One sampling request: what of it can be served, the run through the engine, the text stops that tokens cannot tell.

The engine stops on token ids. A stop *string* may come out in tokens of any cut, so the text so far is looked at
after each token; the model's own end tokens stop it as well.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from doorstep.engine.api import Engine, Finished, ModelInfo, SampleParams, Token
from doorstep.errors import UsageError
from doorstep.training.codec import Sampled
from doorstep.training.wire import Sample, SamplingParams

Detokenize = Callable[[Sequence[int]], str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been checked. ``scored``: how many of the last prompt tokens to score, None for none."""

    prompt: list[int]
    params: SampleParams
    n: int
    text_stops: list[str]
    scored: int | None


class Result(msgspec.Struct, frozen=True):
    """``prompt_logprobs`` has one entry per prompt token, None where none was asked for or can be."""

    sequences: list[Sampled]
    prompt_logprobs: list[float | None] | None


def plan(request: Sample, info: ModelInfo) -> Plan:
    """Check a request; UsageError names what cannot be served."""
    _refuse_unserved(request)
    prompt = _tokens(request)
    if request.num_samples < 1:
        raise UsageError("num_samples must be at least 1")
    room = info.max_context - len(prompt)
    if room < 1:
        raise UsageError(f"the prompt has {len(prompt)} tokens; {info.name} holds {info.max_context} with the answer")
    sampling = request.sampling_params
    ids, texts = _stops(sampling)
    params = SampleParams(
        max_tokens=room if sampling.max_tokens is None else sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=ids,
    )
    return Plan(prompt=prompt, params=params, n=request.num_samples, text_stops=texts, scored=_scored(request, prompt))


def detokenizer(folder: Path) -> Detokenize:
    """Return the tokens-to-text of a model folder, special tokens spelt out."""
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"stop strings need {folder}/tokenizer.json ({error}); give stop as token ids") from None
    return partial(tokenizer.decode, skip_special_tokens=False)


async def run(engine: Engine, adapter: str | None, plan: Plan, detokenize: Detokenize | None) -> Result:
    """Sample, then score the prompt if that was asked for. ``detokenize`` is needed for text stops."""
    stream = engine.sample(adapter, plan.prompt, plan.params, plan.n)
    sequences = await _collect(stream, plan, detokenize)
    if plan.scored is None:
        return Result(sequences, None)
    scores = (await engine.score(adapter, plan.prompt)).logprobs
    first = len(scores) - plan.scored
    return Result(sequences, [score if index >= first else None for index, score in enumerate(scores)])


async def _collect(stream: AsyncIterator[Token | Finished], plan: Plan, detokenize: Detokenize | None) -> list[Sampled]:
    tokens: list[list[int]] = [[] for _ in range(plan.n)]
    logprobs: list[list[float]] = [[] for _ in range(plan.n)]
    stopped: dict[int, bool] = {}
    # A request that is cancelled, or stopped by its text, ends the engine's work on it at once.
    async with aclosing(cast("AsyncGenerator[Token | Finished]", stream)) as events:
        async for event in events:
            if event.index in stopped:
                continue
            if isinstance(event, Finished):
                stopped[event.index] = event.reason == "stop"
            else:
                tokens[event.index].append(event.id)
                logprobs[event.index].append(event.logprob)
                if detokenize and _ends(tokens[event.index], plan.text_stops, detokenize):
                    stopped[event.index] = True
            if len(stopped) == plan.n:
                break
    return [Sampled(tokens=tokens[i], logprobs=logprobs[i], stopped=stopped.get(i, False)) for i in range(plan.n)]


def _ends(tokens: list[int], stops: list[str], detokenize: Detokenize) -> bool:
    """Tell whether the last token completed a stop string; each token stands for at least one byte of it."""
    window = max(len(stop.encode()) for stop in stops) + 4
    text = detokenize(tokens[-window:])
    return any(stop in text for stop in stops)


def _refuse_unserved(request: Sample) -> None:
    asked = {
        "topk_prompt_logprobs": request.topk_prompt_logprobs,
        "topk_sample_logprobs": request.topk_sample_logprobs,
        "target_prompt_logprobs": request.target_prompt_logprobs is not None,
        "prompt_alt_tokens_k": request.prompt_alt_tokens_k,
    }
    if unserved := [name for name, value in asked.items() if value]:
        raise UsageError(f"asample: {', '.join(unserved)} not served here yet; leave it out")
    if request.record_stability_info:
        raise UsageError(
            "asample: record_stability_info is for the loss stable_reinforce, which is not served here yet. "
            "Train with importance_sampling, ppo or cispo and make the sampling client without it."
        )


def _tokens(request: Sample) -> list[int]:
    kinds = {chunk.type for chunk in request.prompt.chunks}
    if unserved := kinds - {"encoded_text"}:
        raise UsageError(f"asample: the model here takes text, not {', '.join(sorted(unserved))} chunks")
    tokens = [token for chunk in request.prompt.chunks for token in chunk.tokens]
    if not tokens:
        raise UsageError("asample: the prompt is empty")
    return tokens


def _stops(params: SamplingParams) -> tuple[list[list[int]] | None, list[str]]:
    """Return the engine's stops and the strings to look for; None keeps the model's end tokens."""
    if params.stop is None:
        return None, []
    given = [params.stop] if isinstance(params.stop, str) else params.stop
    texts = [stop for stop in given if isinstance(stop, str)]
    ids = [[stop] for stop in given if isinstance(stop, int)]
    if texts and ids:
        raise UsageError("sampling_params.stop: give strings or token ids, not both")
    if "" in texts:
        raise UsageError("sampling_params.stop: an empty string stops nothing")
    return (None, texts) if texts else (ids, [])


def _scored(request: Sample, prompt: list[int]) -> int | None:
    if not request.prompt_logprobs:
        return None
    last = request.prompt_logprobs_last_n
    if last is None:
        return len(prompt)
    if not 1 <= last < len(prompt):
        raise UsageError(f"prompt_logprobs_last_n must be from 1 to {len(prompt) - 1}, one less than the prompt")
    return last

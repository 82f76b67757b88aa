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

from doorstep.engine.api import Engine, Finished, Image, ModelInfo, SampleParams, ScoreParams, Scores, Token
from doorstep.errors import UsageError
from doorstep.training.wire import Chunk, Sample, SamplingParams, Tensor

Detokenize = Callable[[Sequence[int]], str]

MAX_SAMPLES = 1024  # of one request
MAX_CHOICES = 4 << 20  # that one answer tells: they take a hundred bytes each on the way
MAX_STOPS = 256  # each is looked for after every token
MAX_STOP = 256  # characters of one
_HOLE = 0  # any token: where an image stands, its own embeddings do


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been checked. ``score`` is what to tell of the prompt, None for nothing."""

    prompt: list[int]
    params: SampleParams
    n: int
    images: list[Image] = []
    text_stops: list[str] = []
    score: ScoreParams | None = None
    scored: int = 0  # how many prompt tokens to tell the log-probabilities and the likeliest tokens of; 0 for none
    logprobs: bool = False  # whether to tell those log-probabilities


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One sampled sequence; ``stopped`` is False when it ran into its limit of tokens."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    top: list[list[tuple[int, float]]] = []  # the likeliest choices at each token, where asked for


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a request comes to; None is what was not asked for.

    ``prompt_logprobs`` and ``topk_prompt`` have one entry per prompt token, None and empty where there can be none or
    none was asked for. ``targets`` and ``alternatives`` have one row for each prompt token but the first.
    """

    sequences: list[Sampled]
    prompt_logprobs: list[float | None] | None = None
    topk_prompt: list[list[tuple[int, float]]] | None = None
    topk: int = 0  # how many at each place of ``topk_prompt``
    topk_sample: int = 0
    targets: list[float] | None = None  # row by row, NaN where none was asked for
    target_width: int = 0
    alternatives: list[list[tuple[int, float]]] | None = None
    cached: int = 0  # prompt tokens that did not have to be computed


async def plan(request: Sample, info: ModelInfo, engine: Engine) -> Plan:
    """Check a request; UsageError names what cannot be served."""
    if not 1 <= request.num_samples <= MAX_SAMPLES:
        raise UsageError(f"num_samples must be at least 1, and at most {MAX_SAMPLES}")
    prompt, images = await _prompt(request.prompt.chunks, info, engine)
    room = info.max_context - len(prompt)
    if room < 1:
        raise UsageError(f"the prompt has {len(prompt)} tokens; {info.name} holds {info.max_context} with the answer")
    sampling = request.sampling_params
    ids, texts = _stops(sampling)
    most = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    top = _count("topk_sample_logprobs", request.topk_sample_logprobs)
    if (told := request.num_samples * most * top) > MAX_CHOICES:
        raise UsageError(
            f"topk_sample_logprobs: {request.num_samples} samples of {most} tokens with {top} choices each would be "
            f"{told}, and an answer tells {MAX_CHOICES}; ask for fewer"
        )
    params = SampleParams(
        max_tokens=most,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=ids,
        top_logprobs=top,
        tempered=True,  # as the hosted service tells them: those that were sampled with
    )
    return Plan(
        prompt=prompt,
        params=params,
        n=request.num_samples,
        images=images,
        text_stops=texts,
        score=_score(request, len(prompt), info),
        scored=_scored(request, len(prompt)),
        logprobs=bool(request.prompt_logprobs),
    )


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
    stream = engine.sample(adapter, plan.prompt, plan.params, plan.n, plan.images)
    sequences, cached = await _collect(stream, plan, detokenize)
    scores = await engine.score(adapter, plan.prompt, plan.score, plan.images) if plan.score else None
    return _result(plan, sequences, cached, scores)


def _result(plan: Plan, sequences: list[Sampled], cached: int, scores: Scores | None) -> Result:
    if scores is None or plan.score is None:
        return Result(sequences=sequences, topk_sample=plan.params.top_logprobs, cached=cached)
    unscored = len(plan.prompt) - plan.scored
    nothing: list[float | None] = [None] * unscored
    top = [[], *scores.top] if plan.score.top else None
    return Result(
        sequences=sequences,
        prompt_logprobs=nothing + scores.logprobs[unscored:] if plan.logprobs else None,
        topk_prompt=[[] for _ in range(unscored)] + top[unscored:] if top else None,
        topk=plan.score.top,
        topk_sample=plan.params.top_logprobs,
        targets=scores.targets if plan.score.width else None,
        target_width=plan.score.width,
        alternatives=scores.alternatives if plan.score.alternatives else None,
        cached=cached,
    )


async def _collect(
    stream: AsyncIterator[Token | Finished], plan: Plan, detokenize: Detokenize | None
) -> tuple[list[Sampled], int]:
    tokens: list[list[int]] = [[] for _ in range(plan.n)]
    logprobs: list[list[float]] = [[] for _ in range(plan.n)]
    top: list[list[list[tuple[int, float]]]] = [[] for _ in range(plan.n)]
    stopped: dict[int, bool] = {}
    cached = 0
    # A request that is cancelled, or stopped by its text, ends the engine's work on it at once.
    async with aclosing(cast("AsyncGenerator[Token | Finished]", stream)) as events:
        async for event in events:
            if event.index in stopped:
                continue
            if isinstance(event, Finished):
                stopped[event.index] = event.reason == "stop"
                cached = event.cached
            else:
                tokens[event.index].append(event.id)
                logprobs[event.index].append(event.logprob)
                if plan.params.top_logprobs:
                    top[event.index].append(event.top)
                if detokenize and _ends(tokens[event.index], plan.text_stops, detokenize):
                    stopped[event.index] = True
            if len(stopped) == plan.n:
                break
    sequences = [
        Sampled(tokens=tokens[i], logprobs=logprobs[i], stopped=stopped.get(i, False), top=top[i])
        for i in range(plan.n)
    ]
    return sequences, cached


def _ends(tokens: list[int], stops: list[str], detokenize: Detokenize) -> bool:
    """Tell whether the last token completed a stop string; each token stands for at least one byte of it."""
    window = max(len(stop.encode()) for stop in stops) + 4
    text = detokenize(tokens[-window:])
    return any(stop in text for stop in stops)


async def _prompt(chunks: list[Chunk], info: ModelInfo, engine: Engine) -> tuple[list[int], list[Image]]:
    kinds = {chunk.type for chunk in chunks}
    served = {"encoded_text", "image"} if info.vision else {"encoded_text"}
    if unserved := kinds - served:
        takes = "text and images" if info.vision else "text"
        raise UsageError(f"asample: the model here takes {takes}, not {', '.join(sorted(unserved))} chunks")
    sizes = iter(await engine.measure([chunk.data for chunk in chunks if chunk.type == "image"]) if info.vision else [])
    tokens: list[int] = []
    images: list[Image] = []
    for place, chunk in enumerate(chunks):
        if chunk.type == "encoded_text":
            tokens += chunk.tokens
            continue
        size = next(sizes)
        if chunk.expected_tokens not in (None, size):
            raise UsageError(f"asample: the image in chunk {place} takes {size} tokens, not {chunk.expected_tokens}")
        images.append(Image(at=len(tokens), tokens=size, data=chunk.data))
        tokens += [_HOLE] * size
    if not tokens:
        raise UsageError("asample: the prompt is empty")
    return tokens, images


def _stops(params: SamplingParams) -> tuple[list[list[int]] | None, list[str]]:
    """Return the engine's stops and the strings to look for; None keeps the model's end tokens."""
    if params.stop is None:
        return None, []
    given = [params.stop] if isinstance(params.stop, str) else params.stop
    texts = [stop for stop in given if isinstance(stop, str)]
    ids = [[stop] for stop in given if isinstance(stop, int)]
    if texts and ids:
        raise UsageError("sampling_params.stop: give strings or token ids, not both")
    if len(given) > MAX_STOPS or any(len(text) > MAX_STOP for text in texts):
        raise UsageError(f"sampling_params.stop: give at most {MAX_STOPS}, of at most {MAX_STOP} characters each")
    if "" in texts:
        raise UsageError("sampling_params.stop: an empty string stops nothing")
    return (None, texts) if texts else (ids, [])


def _scored(request: Sample, length: int) -> int:
    """Return how many of the last prompt tokens are told their log-probabilities and likeliest choices."""
    last = request.prompt_logprobs_last_n
    if last is None:
        return length if request.prompt_logprobs or request.topk_prompt_logprobs else 0
    if not request.prompt_logprobs:
        raise UsageError("prompt_logprobs_last_n applies to prompt logprobs; set prompt_logprobs")
    if not 1 <= last < length:
        raise UsageError(f"prompt_logprobs_last_n must be from 1 to {length - 1}, one less than the prompt")
    return last


def _score(request: Sample, length: int, info: ModelInfo) -> ScoreParams | None:
    targets, width = _targets(request.target_prompt_logprobs, length, info)
    top = _count("topk_prompt_logprobs", request.topk_prompt_logprobs)
    alternatives = _count("prompt_alt_tokens_k", request.prompt_alt_tokens_k)
    if not (request.prompt_logprobs or top or width or alternatives):
        return None
    return ScoreParams(
        # The other two are asked of all places, whatever part the log-probabilities are wanted of.
        last=None if width or alternatives else request.prompt_logprobs_last_n,
        top=top,
        targets=targets,
        width=width,
        alternatives=alternatives,
        temperature=request.sampling_params.temperature,
        seed=request.sampling_params.seed,
    )


def _count(name: str, value: int) -> int:
    if not 0 <= value <= 1000:
        raise UsageError(f"{name} must be from 0 to 1000, and is {value}")
    return value


def _targets(tensor: Tensor | None, length: int, info: ModelInfo) -> tuple[list[int], int]:
    """Return the ids asked for, row by row, and how many there are in a row; -1 is none."""
    if tensor is None:
        return [], 0
    where = "target_prompt_logprobs"
    if tensor.dtype != "int64" or tensor.shape is None or len(tensor.shape) != 2 or tensor.shape[0] != length - 1:
        raise UsageError(f"{where} must be int64 [{length - 1}, K], and is {tensor.dtype} {tensor.shape}")
    width = tensor.shape[1]
    if not 1 <= width <= 1000:
        raise UsageError(f"{where}: K must be from 1 to 1000, and is {width}")
    targets = tensor.data if tensor.sparse_crow_indices is None else _dense(where, tensor, length - 1, width)
    if len(targets) != (length - 1) * width:
        raise UsageError(f"{where}: {len(targets)} values for the shape {tensor.shape}")
    if wrong := [token for token in targets if not -1 <= token < info.vocabulary]:
        raise UsageError(f"{where} has the id {wrong[0]}, outside the vocabulary of {info.vocabulary}")
    return targets, width


def _dense(where: str, tensor: Tensor, rows: int, width: int) -> list[int]:
    begins, columns = tensor.sparse_crow_indices or [], tensor.sparse_col_indices or []
    fits = len(begins) == rows + 1 and begins[0] == 0 and begins[-1] == len(columns) == len(tensor.data)
    if not fits or sorted(begins) != begins or any(not 0 <= column < width for column in columns):
        raise UsageError(f"{where}: its sparse rows do not fit the shape {tensor.shape}")
    dense = [-1] * (rows * width)
    for row in range(rows):
        for place in range(begins[row], begins[row + 1]):
            dense[row * width + columns[place]] = tensor.data[place]
    return dense

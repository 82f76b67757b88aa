"""A small engine that really learns, without torch: a softmax over the next token for each pair of tokens before it.

The base always answers token ``BASE_ANSWER`` and ends. Steps are plain gradient descent, exact in Python floats, so
that runs can be compared bit for bit.
"""

import hashlib
import json
import math
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from doorstep.engine.api import (
    AdamParams,
    Checkpoint,
    Finished,
    Image,
    LoraSpec,
    Loss,
    ModelInfo,
    SampleParams,
    ScoreParams,
    Scores,
    Token,
    TrainResult,
    TrainRow,
)
from doorstep.errors import EngineError

END, ASK, BASE_ANSWER = 0, 1, 2
VOCABULARY = 12


class _Adapter(msgspec.Struct):
    spec: LoraSpec
    table: dict[str, list[float]] = {}
    gradient: dict[str, list[float]] = {}
    steps: int = 0


class TableEngine:
    def __init__(self, folder: str) -> None:
        self.adapters: dict[str, _Adapter] = {}
        self._info = ModelInfo(
            name="tiny",
            folder=folder,
            digest="d" * 64,
            tokenizer_digest="t" * 64,
            parameters=1,
            vocabulary=VOCABULARY,
            max_context=16,
        )

    async def info(self) -> ModelInfo:
        return self._info

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        self.adapters[adapter] = _Adapter(spec)

    async def drop_adapter(self, adapter: str) -> None:
        del self.adapters[adapter]

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        held, total = self.adapters[adapter], 0.0
        logprobs = []
        for row in rows:
            chances = [self._logprobs(adapter, row.tokens[: place + 1]) for place in range(len(row.tokens))]
            logprobs.append([each[target] for each, target in zip(chances, row.targets, strict=True)])
            for place, target in enumerate(row.targets):
                weight = _weight(row, place, chances[place][target], loss)
                total -= weight * chances[place][target]
                slot = held.gradient.setdefault(_key(row.tokens[: place + 1]), [0.0] * VOCABULARY)
                for token in range(VOCABULARY):
                    slot[token] += weight * (math.exp(chances[place][token]) - (token == target))
        return TrainResult(logprobs=logprobs, metrics={"loss:sum": total})

    async def optim_step(self, adapter: str, params: AdamParams) -> dict[str, float]:
        held = self.adapters[adapter]
        for key, slot in held.gradient.items():
            values = held.table.setdefault(key, [0.0] * VOCABULARY)
            held.table[key] = [old - params.learning_rate * new for old, new in zip(values, slot, strict=True)]
        held.gradient, held.steps = {}, held.steps + 1
        return {"step": float(held.steps)}

    async def save(self, adapter: str, folder: str, optimizer: bool) -> Checkpoint:
        data = json.dumps(msgspec.to_builtins(self.adapters[adapter]), sort_keys=True).encode()
        Path(folder).mkdir()  # noqa: ASYNC240
        (Path(folder) / "adapter.json").write_bytes(data)
        return Checkpoint(digest=hashlib.sha256(data).hexdigest(), size=len(data))

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        self.adapters[adapter] = msgspec.json.decode((Path(folder) / "adapter.json").read_bytes(), type=_Adapter)
        return self.adapters[adapter].spec

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncIterator[Token | Finished]:
        for index in range(n):
            chance, tokens = random.Random(f"{params.seed}/{index}"), list(prompt)
            while len(tokens) < len(prompt) + params.max_tokens:
                each = self._logprobs(adapter, tokens)
                weights = [math.exp(value) for value in each]
                greedy = params.temperature == 0
                token = each.index(max(each)) if greedy else chance.choices(range(VOCABULARY), weights)[0]
                tokens.append(token)
                yield Token(index, token, each[token])
                if token == END:
                    break
            yield Finished(index, "stop" if tokens[-1] == END else "length")

    async def score(
        self,
        adapter: str | None,
        tokens: list[int],
        params: ScoreParams = ScoreParams(),  # noqa: B008
        images: Sequence[Image] = (),
    ) -> Scores:
        values = [None, *(self._logprobs(adapter, tokens[:at])[tokens[at]] for at in range(1, len(tokens)))]
        return Scores(logprobs=values)

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        raise EngineError("this model takes no images")

    async def copy_adapter(self, source: str, target: str) -> None:
        self.adapters[target] = msgspec.convert(msgspec.to_builtins(self.adapters[source]), _Adapter)

    async def adapter_size(self, adapter: str) -> int:
        return 1

    async def close(self) -> None:
        pass

    def _logprobs(self, adapter: str | None, tokens: list[int]) -> list[float]:
        values = [0.0] * VOCABULARY
        values[BASE_ANSWER if tokens[-1] == ASK else END] = 2.0
        if adapter is not None:
            moved = self.adapters[adapter].table.get(_key(tokens), [0.0] * VOCABULARY)
            values = [value + move for value, move in zip(values, moved, strict=True)]
        total = math.log(math.fsum(math.exp(value) for value in values))
        return [value - total for value in values]


def _key(tokens: list[int]) -> str:
    return ",".join(map(str, tokens[-2:]))


def _weight(row: TrainRow, place: int, logprob: float, loss: Loss) -> float:
    if "weights" in row.inputs:
        return row.inputs["weights"][place]
    ratio, advantage = math.exp(logprob - row.inputs["logprobs"][place]), row.inputs["advantages"][place]
    clipped = min(max(ratio, loss.config["clip_low_threshold"]), loss.config["clip_high_threshold"])
    return advantage * ratio if advantage * ratio <= advantage * clipped else 0.0

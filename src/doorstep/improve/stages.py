"""The two stages of post-training, one step each at a time, spoken through the public ``tinker`` client.

Every random choice is a function of (seed, step), so that a step can be repeated after a kill.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tinker

from doorstep.errors import UsageError
from doorstep.grading.graders import WRONG, Abstention, CodeGrader, Score
from doorstep.improve.examples import Example, Renderer, Row, batch_of, rl_row, sft_rows
from doorstep.improve.plan import Plan
from doorstep.workflows.workflow import Workflow

Metrics = dict[str, float]
StepListener = Callable[[str, int, int, Metrics], None]  # stage, steps done, steps in all, metrics


class Stage(Protocol):
    """A number of steps of one kind."""

    name: str
    steps: int

    def step(self, client: tinker.TrainingClient, step: int) -> Metrics:
        """Do one step and return its figures."""
        ...


class Sft:
    """Supervised fine-tuning on the company's own records."""

    name = "sft"

    def __init__(self, plan: Plan, data: Sequence[Example]) -> None:
        self._plan = plan
        self._data = data
        batches = -(-len(data) // min(plan.sft.batch, len(data)))
        self.steps = plan.sft.epochs * batches

    def step(self, client: tinker.TrainingClient, step: int) -> Metrics:
        """Train on one batch; ``loss`` is the mean over its answer tokens, in nats."""
        batch = batch_of(self._data, self._plan.sft.batch, step, self._plan.seed)
        rate = falling(self._plan.sft.learning_rate, step, self.steps)
        result = _update(client, sft_rows(batch), self._plan.grad_clip, rate, "cross_entropy")
        return {"loss": result["loss:sum"]}


class Rl:
    """Reinforcement learning with the workflow's grader as the reward."""

    name = "rl"

    def __init__(
        self, plan: Plan, data: Sequence[Example], workflow: Workflow, renderer: Renderer, grader: CodeGrader
    ) -> None:
        self._plan = plan
        self._data = data
        self._workflow = workflow
        self._renderer = renderer
        self._grader = grader
        self.steps = plan.rl.steps

    def step(self, client: tinker.TrainingClient, step: int) -> Metrics:
        """Sample groups from the policy of now, grade them, and take one step on their advantages.

        A sample without a grade is left out of its group, and a group whose samples are all as good teaches nothing.
        """
        settings = self._plan.rl
        batch = batch_of(self._data, settings.prompts, step, self._plan.seed + 1)
        groups = self._sample(client, batch, step)
        rows: list[Row] = []
        scores: list[Score] = []
        used = 0
        for example, samples in zip(batch, groups, strict=True):
            graded = [(sample, score) for sample in samples if (score := self._score(example, sample))]
            scores += [score for _, score in graded]
            group = self._group_rows(example, graded)
            used += bool(group)
            rows += group
        if not scores:
            raise UsageError("grade() gave no grade to any sample of a step; nothing can be learned from that.")
        lengths = [len(sample.tokens) for samples in groups for sample in samples]
        if rows:
            clip = {"clip_low_threshold": settings.clip_low, "clip_high_threshold": settings.clip_high}
            scaled = scale_advantages(rows, 1.0 / sum(lengths))
            rate = falling(settings.learning_rate, step, self.steps)
            _update(client, scaled, self._plan.grad_clip, rate, "ppo", clip)
        return {
            "exact": sum(score.exact for score in scores) / len(scores),
            "reward": sum(score.reward for score in scores) / len(scores),
            "used_groups": used / len(batch),
            "tokens_per_answer": sum(lengths) / len(lengths),
        }

    def _group_rows(self, example: Example, graded: Sequence[tuple[Any, Score]]) -> list[Row]:
        rewards = [score.reward + self._plan.rl.exact_bonus * score.exact for _, score in graded]
        if len(set(rewards)) < 2:
            return []
        mean = sum(rewards) / len(rewards)
        return [
            rl_row(example.prompt, list(sample.tokens), list(sample.logprobs), reward - mean)
            for (sample, _), reward in zip(graded, rewards, strict=True)
        ]

    def _sample(self, client: tinker.TrainingClient, batch: Sequence[Example], step: int) -> list[Sequence[Any]]:
        sampler = client.save_weights_and_get_sampling_client().result()
        pending = []
        for index, example in enumerate(batch):
            params = tinker.SamplingParams(
                max_tokens=example.room,
                temperature=self._plan.rl.temperature,
                seed=random.Random(f"{self._plan.seed}/{step}/{index}").getrandbits(31),
                stop=list(self._renderer.stop_ids),
            )
            prompt = tinker.ModelInput.from_ints(example.prompt)
            pending.append(sampler.sample(prompt, num_samples=self._plan.rl.samples, sampling_params=params))
        return [future.result().sequences for future in pending]

    def _score(self, example: Example, sample: Any) -> Score | None:
        """Grade what the business would have got: parsed and with the rules applied. Unusable or cut is wrong."""
        if sample.stop_reason == "length":
            return WRONG
        answer = self._renderer.answer(sample.tokens)
        try:
            value = self._workflow.finish(self._workflow.parse(answer), example.task.item)
        except Exception:
            return WRONG
        score = self._grader.score(value, example.task.expected)
        return None if isinstance(score, Abstention) else score


def falling(rate: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, falling linearly to zero after the last."""
    return rate * (1.0 - step / steps)


def scale_advantages(rows: Sequence[Row], factor: float) -> list[Row]:
    """Multiply all advantages by one factor: the API sums, and a step's size must not grow with its tokens."""
    return [
        Row(
            tokens=row.tokens,
            targets=row.targets,
            floats=row.floats | {"advantages": [value * factor for value in row.floats["advantages"]]},
        )
        for row in rows
    ]


def _update(
    client: tinker.TrainingClient,
    rows: Sequence[Row],
    grad_clip: float,
    rate: float,
    loss: str,
    config: dict[str, float] | None = None,
) -> Metrics:
    """Forward, backward and one optimiser step, submitted together so that the service does them in one go."""
    backward = client.forward_backward([_datum(row) for row in rows], loss, config)
    step = client.optim_step(tinker.AdamParams(learning_rate=rate, grad_clip_norm=grad_clip))
    metrics: Metrics = backward.result().metrics
    step.result()
    return metrics


def _datum(row: Row) -> tinker.Datum:
    floats = {
        name: tinker.TensorData(data=values, dtype="float32", shape=[len(values)])
        for name, values in row.floats.items()
    }
    targets = tinker.TensorData(data=row.targets, dtype="int64", shape=[len(row.targets)])
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(row.tokens), loss_fn_inputs={"target_tokens": targets, **floats}
    )

"""Records as training numbers: token ids, targets, weights and advantages. Pure; knows no service."""

import functools
import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from doorstep.workflows.taskset import Task, TrainingSet
from doorstep.workflows.workflow import Workflow


class Renderer(Protocol):
    """Messages to tokens and back, of the base model."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """The ids that end an answer."""
        ...

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return a conversation as the ids that ask for the next answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return plain text as ids."""
        ...

    def answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer without what ended it."""
        ...


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One training record: the prompt's ids, and the ids of the answer with its end token."""

    task: Task
    prompt: list[int]
    answer: list[int]
    room: int  # tokens that an answer may have


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One datum before it is put on the wire: position ``i`` of ``tokens`` predicts ``targets[i]``."""

    tokens: list[int]
    targets: list[int]
    floats: dict[str, list[float]]  # weights, or logprobs and advantages; one number per position


def examples(
    data: TrainingSet, workflow: Workflow, renderer: Renderer, max_context: int
) -> tuple[list[Example], list[str]]:
    """Render the training set; also say which records were left out, and why."""
    made: list[Example] = []
    left_out: list[str] = []
    for task in data.tasks:
        try:
            made.append(_example(task, workflow, renderer, max_context))
        except Exception as error:  # the workflow's own code: a record that it cannot take is no reason to stop
            left_out.append(f"{task.task_id}: {error}")
    return made, left_out


def _example(task: Task, workflow: Workflow, renderer: Renderer, max_context: int) -> Example:
    prompt = renderer.prompt(workflow.messages(task.item))
    answer = [*renderer.encode(workflow.answer(task.expected, task.item)), renderer.stop_ids[0]]
    if len(prompt) + len(answer) > max_context:
        raise ValueError(
            f"{len(prompt) + len(answer)} tokens do not fit the context of {max_context}; shorten render()"
        )
    if len(answer) > workflow.max_tokens:
        raise ValueError(f"the right answer has {len(answer)} tokens; raise MAX_TOKENS, which is {workflow.max_tokens}")
    room = min(workflow.max_tokens, max_context - len(prompt))
    return Example(task=task, prompt=prompt, answer=answer, room=room)


def sft_rows(batch: Sequence[Example]) -> list[Row]:
    """Cross-entropy on the answers. The API sums, so the weights make it the mean over the batch's answer tokens."""
    weight = 1.0 / sum(len(example.answer) for example in batch)
    return [_row(example.prompt, example.answer, weights=[weight] * len(example.answer)) for example in batch]


def rl_row(prompt: list[int], sampled: list[int], logprobs: list[float], advantage: float) -> Row:
    """One sample with its advantage on each sampled token."""
    return _row(prompt, sampled, logprobs=logprobs, advantages=[advantage] * len(sampled))


def _row(prompt: list[int], answer: list[int], **per_answer: list[float]) -> Row:
    tokens = prompt + answer
    before = [0.0] * (len(prompt) - 1)
    return Row(
        tokens=tokens[:-1],
        targets=tokens[1:],
        floats={name: before + values for name, values in per_answer.items()},
    )


def batch_of(items: Sequence[Example], size: int, step: int, seed: int) -> list[Example]:
    """Return the batch of a step: epochs of seeded permutations, so that any step can be computed on its own."""
    size = min(size, len(items))
    picked: list[Example] = []
    for place in range(step * size, (step + 1) * size):
        epoch, index = divmod(place, len(items))
        picked.append(items[_permutation(len(items), epoch, seed)[index]])
    return picked


@functools.lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)

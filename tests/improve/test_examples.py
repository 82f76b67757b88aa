"""Records as training numbers."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.improve.examples import Example, batch_of, examples, rl_row, sft_rows
from doorstep.workflows.taskset import Task, TrainingSet

LISTS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
EXAMPLES = st.builds(
    lambda prompt, answer: Example(task=Task(task_id="t", digest="d", item=""), prompt=prompt, answer=answer, room=9),
    LISTS,
    LISTS,
)


@given(st.lists(EXAMPLES, min_size=1, max_size=5))
def test_sft_predicts_each_answer_token_from_those_before_and_no_other(batch):
    for example, row in zip(batch, sft_rows(batch), strict=True):
        whole = example.prompt + example.answer
        assert (row.tokens, row.targets) == (whole[:-1], whole[1:])
        learned = [target for target, weight in zip(row.targets, row.floats["weights"], strict=True) if weight]
        assert learned == example.answer


@given(st.lists(EXAMPLES, min_size=1, max_size=5))
def test_the_weights_of_a_batch_sum_to_one_however_long_it_is(batch):
    assert sum(sum(row.floats["weights"]) for row in sft_rows(batch)) == pytest.approx(1.0)


@given(LISTS, LISTS)
def test_a_sample_has_its_advantage_and_logprob_on_its_own_tokens(prompt, sampled):
    row = rl_row(prompt, sampled, [-0.5] * len(sampled), 2.0)
    before = [0.0] * (len(prompt) - 1)
    assert row.floats == {"advantages": before + [2.0] * len(sampled), "logprobs": before + [-0.5] * len(sampled)}
    assert row.targets[len(prompt) - 1 :] == sampled


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_batches_go_through_all_records_evenly_and_any_step_stands_alone(count, size, seed):
    items = [
        Example(task=Task(task_id=str(i), digest="", item=""), prompt=[i], answer=[0], room=1) for i in range(count)
    ]
    steps = [[example.prompt[0] for example in batch_of(items, size, step, seed)] for step in range(count)]
    times = Counter(place for step in steps for place in step)
    assert len(times) == count
    assert set(times.values()) == {min(size, count)}
    assert [example.prompt[0] for example in batch_of(items, size, count - 1, seed)] == steps[-1]


def test_a_record_that_cannot_be_used_is_left_out_with_its_reason(sealed, workflow, renderer):
    tasks = [
        Task(task_id="good", digest="1", item="1 red", expected="fox"),
        Task(task_id="long", digest="2", item="red " * 15, expected="fox"),
        Task(task_id="wordy", digest="3", item="3 red", expected="fox fox fox fox"),
        Task(task_id="broken", digest="4", item=4, expected="fox"),
    ]
    strict = msgspec.structs.replace(workflow, render=lambda item: item.strip())
    made, left_out = examples(TrainingSet(sealed, tasks), strict, renderer, 16)
    assert [example.task.task_id for example in made] == ["good"]
    assert [line.split(":")[0] for line in left_out] == ["long", "wordy", "broken"]
    assert "raise MAX_TOKENS, which is 4" in left_out[1]


def test_an_answer_has_the_room_that_the_context_leaves(sealed, workflow, renderer):
    tasks = [
        Task(task_id="a", digest="1", item="red " * 12, expected="fox"),
        Task(task_id="b", digest="2", item="1 red", expected="fox"),
    ]
    made, _ = examples(TrainingSet(sealed, tasks), workflow, renderer, 16)
    assert [example.room for example in made] == [3, 4]

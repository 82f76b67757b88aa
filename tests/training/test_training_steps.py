"""The step log: operations on disk, the steps and the trace that are seen in them."""

import math

import pytest

from doorstep.training import steps
from doorstep.training.steps import FORWARD, FORWARD_BACKWARD, OPTIM_STEP, StepLog


@pytest.fixture
def file(tmp_path):
    return tmp_path / "steps.jsonl"


@pytest.fixture
def noted(file):
    return StepLog(lambda _: file)


def one_step(noted, number, *losses):
    for loss in losses:
        metrics = {"loss:sum": loss}
        noted.note("r", FORWARD_BACKWARD, seconds=0.5, queued_s=0.125, rows=2, tokens=8, metrics=metrics)
    metrics = {"step": number, "grad_norm": 0.5, "learning_rate": 1e-3}
    noted.note("r", OPTIM_STEP, seconds=0.25, metrics=metrics)


def test_a_step_is_the_sum_of_its_calls(noted, file):
    one_step(noted, 1, 3.0, 4.0)
    (step,) = steps.steps(steps.operations(file))
    assert (step.step, step.loss, step.rows, step.tokens) == (1, 7.0, 4, 16)
    assert (step.grad_norm, step.learning_rate) == (0.5, 1e-3)
    assert (step.forward_backward_s, step.optim_s, step.queued_s) == (1.0, 0.25, 0.25)


def test_each_step_has_its_own(noted, file):
    one_step(noted, 1, 3.0)
    noted.note("r", FORWARD, seconds=9.0, tokens=100, metrics={"loss:sum": 9.0})
    one_step(noted, 2, 2.0)
    assert [(step.loss, step.tokens) for step in steps.steps(steps.operations(file))] == [(3.0, 8), (2.0, 8)]


def test_a_loss_that_is_no_number_is_unknown(noted, file):
    one_step(noted, 1, 3.0, math.nan)
    (step,) = steps.steps(steps.operations(file))
    assert step.loss is None


def test_a_line_that_was_cut_off_is_passed_over(noted, file):
    one_step(noted, 1, 3.0)
    file.write_bytes(file.read_bytes() + b'{"kind": "optim_')
    assert len(list(steps.steps(steps.operations(file)))) == 1


def test_a_disk_that_takes_nothing_does_not_stop_training(tmp_path):
    noted = StepLog(lambda _: tmp_path / "no such folder" / "steps.jsonl")
    one_step(noted, 1, 3.0)
    assert noted.operations == {FORWARD_BACKWARD: 1, OPTIM_STEP: 1}


def test_totals_are_kept_by_kind(noted):
    one_step(noted, 1, 3.0, 4.0)
    assert noted.tokens[FORWARD_BACKWARD] == 16
    assert noted.seconds[FORWARD_BACKWARD] == 1.0
    assert noted.queued_s[FORWARD_BACKWARD] == 0.25


def test_a_trace_shows_each_operation_on_its_track(noted, file):
    one_step(noted, 1, 3.0)
    written = steps.trace({"r": steps.operations(file), "sampling": []})["traceEvents"]
    names = [event["args"]["name"] for event in written if event["ph"] == "M"]
    whole = [event for event in written if event["ph"] == "X"]
    assert names == ["r", "sampling"]
    assert [(event["name"], event["dur"], event["tid"]) for event in whole] == [
        (FORWARD_BACKWARD, 500_000, 1),
        (OPTIM_STEP, 250_000, 1),
    ]
    assert [event["ph"] for event in written if event.get("cat") == "queue"] == ["b", "e"]


def test_the_newest_operations_are_read_alone(noted, file):
    for number in range(1, 4):
        one_step(noted, number, 3.0)
    last = len(file.read_bytes().splitlines(keepends=True)[-1])
    assert [done.metrics["step"] for done in steps.operations(file, last)] == [3]
    assert len(steps.operations(file, last + 5)) == 1

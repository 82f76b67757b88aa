"""Power cuts and Ctrl-C: nothing is lost, nothing is done twice, and the adapter is the same bit for bit."""

import json
import random
import time
from typing import Any, NamedTuple

import pytest
from company import BUDGET, WORKFLOW, Company, Ended, cut_power, press_ctrl_c, sentences, wait_until

from doorstep.improve.plan import parse_budget, rl_steps_within, sft_plan, sft_steps
from doorstep.store import Store
from doorstep.types import Mode, Run, TrainingStep

pytestmark = pytest.mark.slow

TRAIN, DEV, HELD_OUT = 104, 16, 40
SFT = sft_steps(sft_plan(TRAIN), TRAIN)
RL = rl_steps_within(parse_budget(BUDGET[1]), SFT)

# An improvement in rows of runs and training steps: the base's answers, SFT, RL, the answers of what was trained. The
# moment of each power cut is drawn between two counts.
BEFORE_CTRL_C = ((1, HELD_OUT - 1), (HELD_OUT + 1, HELD_OUT + SFT // 2))
AFTER_CTRL_C = (
    (HELD_OUT + SFT - 3, HELD_OUT + SFT),
    (HELD_OUT + SFT + 1, HELD_OUT + SFT + RL - 1),
    (HELD_OUT + SFT + RL + 1, 2 * HELD_OUT + SFT + RL),
)


class Interrupted(NamedTuple):
    """An improvement that came to its end after five power cuts and a Ctrl-C."""

    company: Company
    stopped: Ended
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, improved) -> Interrupted:
    company, draw = Company(tmp_path_factory.mktemp("interrupted")), random.Random(20)
    company.found(sentences())
    how = BUDGET
    for low, high in BEFORE_CTRL_C:
        _improve_until(company, how, draw.randint(low, high), draw, cut_power)
        how = ("--resume",)
    stopped = _improve_until(company, how, HELD_OUT + SFT - 4, draw, press_ctrl_c)
    for low, high in AFTER_CTRL_C:
        _improve_until(company, how, draw.randint(low, high), draw, cut_power)
    return Interrupted(company, stopped, company.doorstep("improve", "--resume", "--json").json)


def _improve_until(company: Company, how: tuple[str, ...], rows: int, draw: random.Random, stop) -> Any:
    process = company.start("improve", WORKFLOW, *how, "--json")
    wait_until(lambda: company.rows("run", "training_step") >= rows, process)
    time.sleep(draw.uniform(0, 0.1))
    return stop(process)


def test_after_five_power_cuts_the_adapter_is_the_same_bit_for_bit(interrupted, improved):
    assert interrupted.outcome["candidate"]["adapter_digest"] == improved.outcome["candidate"]["adapter_digest"]
    assert interrupted.outcome["decision"]["verdict"] == "promote"


def test_after_five_power_cuts_no_answer_and_no_step_is_there_twice(interrupted):
    with Store.open(interrupted.company.data / "doorstep.db") as store:
        answers = [(run.evaluation_id, run.task_id) for run in store.select(Run, mode=Mode.EVAL)]
        steps = [(step.stage, step.step) for step in store.select(TrainingStep)]
    assert len(answers) == len(set(answers)) == 3 * HELD_OUT + 2 * DEV
    assert sorted(steps) == [("rl", step) for step in range(RL)] + [("sft", step) for step in range(SFT)]


def test_ctrl_c_in_an_improvement_ends_with_130_and_says_how_to_go_on(interrupted):
    assert (interrupted.stopped.code, interrupted.stopped.out) == (130, "")
    assert "--resume" in interrupted.stopped.err
    assert "Traceback" not in interrupted.stopped.err


def test_ctrl_c_in_a_run_keeps_what_is_done_and_the_same_command_goes_on(improved, tmp_path):
    company, work = improved.copy(tmp_path / "company"), ("run", WORKFLOW, "new.jsonl", "--out", "out.jsonl", "--json")
    lines = [{"id": f"n{number}", "input": f"send {number} crates"} for number in range(150)]
    (company.folder / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    before = company.rows("run")
    process = company.start(*work)
    wait_until(lambda: company.rows("run") > before, process)
    stopped = press_ctrl_c(process)
    assert (stopped.code, stopped.out) == (130, "")
    assert "the same command goes on" in stopped.err
    assert not (company.folder / "out.jsonl").exists()
    assert before < company.rows("run") < before + 150
    assert company.doorstep(*work).json["n"] == 150
    assert company.rows("run") == before + 150

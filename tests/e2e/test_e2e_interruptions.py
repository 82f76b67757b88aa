"""Power cuts and Ctrl-C: nothing is lost, nothing is done twice, and the adapter is the same bit for bit."""

import json
import random
import time

import pytest
from company import BUDGET, RECORDS, WORKFLOW, Company, cut_power, press_ctrl_c, sentences, wait_until

from doorstep.store import Store
from doorstep.types import Mode, Run, TrainingStep

pytestmark = pytest.mark.slow

# How many rows of runs and training steps there are in each phase: 40 answers of the base, 16 steps of SFT with a safe
# point after the tenth, 5 of RL, 80 answers of the trained stages. Each phase is cut at a moment drawn in it.
PHASES = {
    "base": (1, 39),
    "first steps": (41, 49),
    "after the safe point": (51, 56),
    "rl": (57, 60),
    "measuring": (62, 130),
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory, improved) -> tuple[Company, dict]:
    """Cut the power five times, then let the improvement end."""
    company, draw = Company(tmp_path_factory.mktemp("cut")), random.Random(20)
    company.found(sentences())
    for number, (low, high) in enumerate(PHASES.values()):
        how = ("--resume",) if number else BUDGET
        process = company.start("improve", WORKFLOW, *how, "--json")
        moment = draw.randint(low, high)
        wait_until(lambda moment=moment: company.rows("run", "training_step") >= moment, process)
        time.sleep(draw.uniform(0, 0.1))
        cut_power(process)
    return company, company.doorstep("improve", "--resume", "--json").json


def test_five_power_cuts_later_the_adapter_is_the_same_bit_for_bit(cut, improved):
    _, outcome = cut
    assert outcome["candidate"]["adapter_digest"] == improved.outcome["candidate"]["adapter_digest"]
    assert outcome["decision"]["verdict"] == "promote"


def test_five_power_cuts_later_no_answer_and_no_step_is_there_twice(cut):
    company, _ = cut
    _assert_nothing_twice(company)


def test_ctrl_c_in_an_improvement_says_how_to_go_on_and_going_on_ends_with_the_same_adapter(tmp_path, improved):
    company = Company(tmp_path)
    company.found(sentences())
    process = company.start("improve", WORKFLOW, *BUDGET, "--json")
    wait_until(lambda: company.rows("training_step") >= 12, process)
    stopped = press_ctrl_c(process)
    assert (stopped.code, stopped.out) == (130, "")
    assert "--resume" in stopped.err
    assert "Traceback" not in stopped.err
    outcome = company.doorstep("improve", WORKFLOW, "--resume", "--json").json
    assert outcome["candidate"]["adapter_digest"] == improved.outcome["candidate"]["adapter_digest"]
    _assert_nothing_twice(company)


def test_ctrl_c_in_a_run_keeps_what_is_done_and_the_same_command_goes_on(improved, tmp_path):
    company = improved.copy(tmp_path / "company")
    inputs = company.folder / "new.jsonl"
    inputs.write_text("".join(json.dumps({"id": f"n{i}", "input": f"send {i} crates"}) + "\n" for i in range(300)))
    before = company.rows("run")
    process = company.start("run", WORKFLOW, "new.jsonl", "--out", "out.jsonl", "--json")
    wait_until(lambda: company.rows("run") > before, process)
    stopped = press_ctrl_c(process)
    assert (stopped.code, stopped.out) == (130, "")
    assert "the same command goes on" in stopped.err
    assert not (company.folder / "out.jsonl").exists()
    kept = company.rows("run") - before
    assert company.doorstep("run", WORKFLOW, "new.jsonl", "--out", "out.jsonl", "--json").json["n"] == 300
    assert kept < 300
    assert company.rows("run") - before == 300


def _assert_nothing_twice(company: Company) -> None:
    with Store.open(company.data / "doorstep.db") as store:
        answers = [(run.evaluation_id, run.task_id) for run in store.select(Run, mode=Mode.EVAL)]
        steps = [(step.stage, step.step) for step in store.select(TrainingStep)]
    assert len(answers) == len(set(answers)) == 3 * RECORDS // 4 + 2 * RECORDS // 10
    assert sorted(steps) == [("rl", step) for step in range(5)] + [("sft", step) for step in range(16)]

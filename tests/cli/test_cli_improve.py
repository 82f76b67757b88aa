"""What ``doorstep improve`` tells: progress on stderr, its result as one object."""

import msgspec

from doorstep import config
from doorstep.cli import output
from doorstep.cli.improving import improve_report, last_outcome
from doorstep.types import Split


def test_records_that_training_could_not_use_are_counted_and_the_first_three_named(improved):
    problems = [f"r{i}: too long" for i in range(5)]
    report = improve_report(msgspec.structs.replace(improved, left_out=problems))
    assert report["left_out"] == {"n": 5, "first": problems[:3]}


def test_they_are_told_on_stderr(capsys):
    with output.bars() as bars:
        bars.left_out([f"r{i}: too long" for i in range(5)])
    told = capsys.readouterr().err
    assert "5 training records" in told
    assert ("r2: too long" in told, "r3" in told) == (True, False)


def test_progress_leaves_stdout_to_the_result(capsys, improved):
    with output.bars() as bars:
        bars.evaluation("base", Split.HELD_OUT)(3, 10)
        for step in range(1, 11):
            bars.step("sft", step, 10, {"loss": 1.0 / step})
        bars.rung(improved.rungs[0])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("train sft") == output.LINES_PER_STAGE


def test_the_plan_holds_the_digest_of_the_base(improved):
    job, _ = last_outcome(config.load(), "crates")
    assert job.plan.base_digest == config.weights_digest(config.TINY)

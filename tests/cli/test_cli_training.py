"""``doorstep training`` reads what a training service left in the data folder."""

from pathlib import Path

import pytest

from doorstep.cli.training import new_steps
from doorstep.engine.api import LoraSpec
from doorstep.training.paths import Kind, TinkerPath
from doorstep.training.registry import Registry, SavedCheckpoint, Session, TrainingRun
from doorstep.training.steps import FORWARD_BACKWARD, OPTIM_STEP, StepLog
from doorstep.training.tenants import TRAINED, Usage

RUN = "s:train:0"
FOLDER = Path(".doorstep") / "training"


@pytest.fixture
def trained(doorstep) -> None:
    """One run of the tenant ``ann``: two steps, one checkpoint."""
    registry = Registry(FOLDER / "sessions")
    registry.put_session(Session(session_id="s", owner="ann", created_us=1, sdk_version="0.38.0"))
    spec = LoraSpec(rank=4)
    registry.put_run(TrainingRun(run_id=RUN, owner="ann", base="tiny", base_digest="d", spec=spec, created_us=1))
    path = TinkerPath(RUN, Kind.WEIGHTS, "one")
    registry.new_folder(path).mkdir()
    registry.put_checkpoint(SavedCheckpoint(path=str(path), folder="f", digest="d", size=1234, created_us=2))
    log = StepLog(registry.steps_file)
    for step in (1, 2):
        log.note(RUN, FORWARD_BACKWARD, seconds=0.5, rows=2, tokens=10, metrics={"loss:sum": 5.0 / step})
        log.note(RUN, OPTIM_STEP, seconds=0.1, metrics={"step": step, "grad_norm": 0.25, "learning_rate": 1e-3})
    usage = Usage(FOLDER / "usage.jsonl")
    usage.compact()
    usage.book("ann", TRAINED, 20, 1.0)


def test_runs_are_listed_with_whose_they_are(doorstep, trained):
    (run,) = doorstep("training", "runs", "--json").json["runs"]
    assert (run["training_run_id"], run["model_owner"], run["steps"], run["checkpoints"]) == (RUN, "ann", 2, 1)
    assert RUN in doorstep("training", "runs").out


def test_a_run_is_shown_with_its_last_step(doorstep, trained):
    shown = doorstep("training", "show", RUN, "--json").json
    assert shown["run"]["lora_rank"] == 4
    assert shown["last_step"]["loss"] == 2.5
    assert [one["checkpoint_id"] for one in shown["checkpoints"]] == ["weights/one"]
    assert "0.25" in doorstep("training", "show", RUN).out


def test_steps_are_shown_with_loss_and_tokens(doorstep, trained):
    steps = doorstep("training", "steps", RUN, "--json").json["steps"]
    assert [(step["step"], step["loss"], step["tokens"]) for step in steps] == [(1, 5.0, 10), (2, 2.5, 10)]
    assert "2.5" in doorstep("training", "steps", RUN).out


def test_new_steps_are_followed(doorstep, trained):
    registry = Registry(FOLDER / "sessions")
    coming = new_steps(registry, RUN, 2)
    StepLog(registry.steps_file).note(RUN, OPTIM_STEP, seconds=0.1, metrics={"step": 3})
    assert next(coming).step == 3


def test_checkpoints_and_usage_are_listed(doorstep, trained):
    (saved,) = doorstep("training", "checkpoints", "--json").json["checkpoints"]
    assert saved["tinker_path"] == f"tinker://{RUN}/weights/one"
    used = doorstep("training", "usage", "--json").json
    assert used["checkpoint_bytes"] == {"ann": 1234}
    assert [(one["tenant"], one["kind"], one["tokens"]) for one in used["used"]] == [("ann", "trained", 20)]
    assert "1,234" in doorstep("training", "usage").out


def test_a_damaged_run_is_named_and_the_others_are_listed(doorstep, trained):
    broken = FOLDER / "sessions" / "s" / "1" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{")
    listed = doorstep("training", "runs")
    assert (listed.code, RUN in listed.out) == (0, True)
    assert "its record s/1/run.json cannot be read" in listed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "s:train:9"), "there is no training run s:train:9 here"),
        (("steps", RUN, "--follow", "--json"), "--json prints one object"),
    ],
)
def test_what_cannot_work_is_said(doorstep, trained, arguments, message):
    ended = doorstep("training", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err

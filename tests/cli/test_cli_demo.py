"""The whole loop through the command line with the real server, engine and training service, at a small size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doorstep.routing.decisions import verify
from doorstep.store import Store
from doorstep.types import Decision, Run, TrainingStep

pytestmark = pytest.mark.slow

WORKFLOW = """
SYSTEM = "qty"
MAX_TOKENS = 8
"""
DEMO = (sys.executable, "-m", "doorstep", "demo", "--workflow", "crates", "--budget", "1s", "--seed", "5", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    (root / "crates" / "inbox").mkdir(parents=True)
    lines = [{"id": f"r{i}", "input": f"send {i} crates", "expected": f"{i}"} for i in range(60)]
    (root / "crates" / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (root / "crates" / "workflow.py").write_text(WORKFLOW, "utf-8")
    (root / "crates" / "inbox" / "new.txt").write_text("send 7 crates", "utf-8")
    (root / "crates" / "inbox" / "nothing.txt").write_text("", "utf-8")
    return root


@pytest.fixture(scope="module")
def demo(folder) -> dict:
    """Kill the demo in its training, as hard as it can be killed, then run it again to its end."""
    killed = subprocess.Popen(DEMO, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_training(folder / ".doorstep/demo/doorstep.db")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    ended = subprocess.run(DEMO, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "going on with the demo that was stopped" in ended.stderr
    return json.loads(ended.stdout)


def _wait_for_training(database: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if database.exists():
            with Store.open(database) as store:
                if store.select(TrainingStep):
                    return
        time.sleep(0.1)
    raise AssertionError("no training step within a minute")


def test_the_demo_reports_every_stage_and_step(demo):
    assert (demo["workflow"], demo["seed"], demo["held_out"]) == ("crates", 5, 15)
    assert [stage["name"] for stage in demo["stages"]] == ["base", "sft", "rl"]
    assert list(demo["seconds"]) == ["start", "load", "base", "train", "decide", "inbox", "report"]
    assert demo["cost_per_1000"]["own_usd"] > 0


def test_the_report_lies_beside_the_data(demo, folder):
    assert json.loads((folder / ".doorstep/demo/report.json").read_text("utf-8")) == demo
    assert (folder / ".doorstep/demo/report.html").read_text("utf-8").count("<svg") == 3


def test_every_new_input_is_a_row_and_what_is_unsure_is_flagged(demo, folder):
    rows = (folder / ".doorstep/demo/crates.csv").read_text("utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["id", "new", "nothing"]
    assert "the file is empty" in rows[2]
    assert demo["inbox"]["needs_person"] >= 1


def test_the_decision_recomputes_and_small_chance_is_not_promoted(demo, folder):
    assert demo["decision"]["verdict"] == "hold"  # 15 records are too few for any promotion
    with Store.open(folder / ".doorstep/demo/doorstep.db") as store:
        assert verify(store, demo["decision"]["id"])
        assert len(store.select(Decision)) == 1


def _doorstep(folder: Path, *arguments: str) -> dict:
    command = (sys.executable, "-m", "doorstep", *arguments, "--data", ".doorstep/demo", "--json")
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_eval_measures_a_trained_stage_on_the_held_out_records(demo, folder):
    result = _doorstep(folder, "eval", "crates", "--variant", "rl")
    assert {"workflow", "variant", "n", "score", "low", "high", "cost_usd", "p50_ms", "p95_ms"} <= result.keys()
    assert result["score"] == demo["stages"][2]["score"]  # greedy answers are the same each time


def test_run_writes_one_row_per_line_of_a_jsonl_file(demo, folder):
    (folder / "new.jsonl").write_text('{"id": "a", "input": "send 7 crates"}\n{"id": "b", "input": "send 8 crates"}\n')
    assert _doorstep(folder, "run", "crates", "new.jsonl", "--out", "out.jsonl")["n"] == 2
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["a", "b"]
    assert {"id", "fields", "confidence", "needs_person", "run_id"} <= rows[0].keys()


def test_ctrl_c_says_that_nothing_is_lost_and_how_to_go_on(folder):
    stopped = subprocess.Popen((*DEMO, "--data", "other"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait_for_training(folder / "other/doorstep.db")
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=30)
    assert (stopped.returncode, out) == (130, b"")
    assert b"the same command goes on" in err
    assert b"Traceback" not in err
    assert not (folder / "other/server.json").exists()  # its server ended with it


def test_no_held_out_record_was_asked_twice_though_the_demo_was_killed(demo, folder):
    with Store.open(folder / ".doorstep/demo/doorstep.db") as store:
        asked = [(run.evaluation_id, run.task_id) for run in store.select(Run, mode="eval")]
    assert len(asked) == len(set(asked))

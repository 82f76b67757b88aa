"""From records to a model with the traffic, through the command alone; the JSON shapes that scripts rely on."""

import csv

import pytest
from company import BUDGET, WORKFLOW, Company, sentences

from doorstep.store import Store
from doorstep.types import DatasetItem, Split

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def promoted(improved, tmp_path_factory) -> Company:
    company = improved.copy(tmp_path_factory.mktemp("promoted") / "company")
    assert company.doorstep("promote", WORKFLOW, "--json").json["decision_id"] == improved.outcome["decision"]["id"]
    return company


def test_a_record_without_its_booking_is_named_and_the_rest_goes_on(improved):
    assert improved.init["records"] == 160
    assert improved.init["problems"] == [
        "records.jsonl:161: the record has no 'expected'; it cannot be learned from or graded"
    ]
    assert "records.jsonl:161" in improved.said


def test_improve_reports_every_rung_a_candidate_and_a_decision(improved):
    outcome = improved.outcome
    assert outcome["workflow"] == WORKFLOW
    assert [rung["name"] for rung in outcome["rungs"]] == ["base", "sft", "rl"]
    for rung in outcome["rungs"]:
        assert rung.keys() >= {"name", "score", "low", "high", "n", "cost_usd", "seconds"}
        assert rung["low"] <= rung["score"] <= rung["high"]
        assert rung["n"] == 40
    assert outcome["candidate"]["variant"] in ("sft", "rl")


def test_a_job_that_can_be_learned_is_learned_and_the_gate_promotes(improved):
    decision, rungs = improved.outcome["decision"], improved.outcome["rungs"]
    assert rungs[-1]["low"] > rungs[0]["high"]
    assert decision["verdict"] == "promote"
    assert decision["p_value"] < 0.01


def test_the_decision_recomputes_from_the_record(improved):
    decision = improved.outcome["decision"]["id"]
    assert improved.company.doorstep("decision", "verify", decision, "--json").json == {"id": decision, "same": True}


def test_eval_of_the_promoted_model_gives_the_score_that_improve_gave(promoted, improved):
    result = promoted.doorstep("eval", WORKFLOW, "--json").json
    assert result.keys() >= {"workflow", "variant", "n", "score", "low", "high", "cost_usd", "p50_ms", "p95_ms"}
    assert result["variant"] == improved.outcome["candidate"]["variant"]
    chosen = next(rung for rung in improved.outcome["rungs"] if rung["name"] == result["variant"])
    assert [result[key] for key in ("score", "low", "high", "n")] == [
        chosen[key] for key in ("score", "low", "high", "n")
    ]
    assert result["cost_usd"] > 0


def test_run_does_new_work_with_the_promoted_model_one_row_per_file(promoted):
    inbox = promoted.folder / "inbox"
    inbox.mkdir()
    (inbox / "a.txt").write_text("send 55 crates of figs please", "utf-8")
    (inbox / "b.txt").write_text("send 83 crates of leeks please", "utf-8")
    report = promoted.doorstep("run", WORKFLOW, "inbox", "--out", "out.csv", "--json").json
    assert (report["n"], report["failed"]) == (2, 0)
    with (promoted.folder / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["answer"]) for row in rows] == [("a", "55 crates"), ("b", "83 crates")]
    assert rows[0].keys() >= {"confidence", "needs_person", "run_id"}


def test_report_has_the_quality_the_decision_and_the_prices(promoted, improved):
    report = promoted.doorstep("report", WORKFLOW, "--json").json
    assert [stage["score"] for stage in report["stages"]] == [rung["score"] for rung in improved.outcome["rungs"]]
    assert report["decision"]["id"] == improved.outcome["decision"]["id"]
    assert report["cost_per_1000"]["own_usd"] > 0
    assert len(report["cost_per_1000"]["list_price_usd"]) == 3
    assert (promoted.data / f"{WORKFLOW}-report.html").read_text("utf-8").count("<svg") == 3


def test_rollback_gives_the_traffic_back_to_the_base(improved, tmp_path):
    company = improved.copy(tmp_path / "company")
    company.doorstep("promote", WORKFLOW)
    route = company.doorstep("rollback", WORKFLOW, "--why", "wrong crates", "--json").json
    assert (route["variant"], route["model"]) == ("base", "tiny")
    assert company.doorstep("eval", WORKFLOW, "--json").json["score"] == improved.outcome["rungs"][0]["score"]


def test_shuffled_labels_are_held_and_promote_moves_nothing(tmp_path):
    company, records = Company(tmp_path), sentences()
    moved = records[1:] + records[:1]  # each with the booking of another: nothing can be learned
    company.found([record | {"expected": other["expected"]} for record, other in zip(records, moved, strict=True)])
    decision = company.doorstep("improve", WORKFLOW, *BUDGET, "--json").json["decision"]
    assert decision["verdict"] == "hold"
    assert decision["statistics"]["reasons"]
    refused = company.doorstep("promote", WORKFLOW, "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "hold" in refused.err
    assert company.rows("route") == 0


def test_the_gate_refuses_a_candidate_whose_training_set_has_a_held_out_record(improved, tmp_path):
    company = improved.copy(tmp_path / "company")
    with Store.open(company.data / "doorstep.db") as store:
        [held_out, *_] = store.select(DatasetItem, split=Split.HELD_OUT)
        [trained, *_] = store.select(DatasetItem, split=Split.TRAIN)
    company.change("UPDATE dataset_item SET task_digest = ? WHERE task_id = ?", held_out.task_digest, trained.task_id)
    refused = company.doorstep("decision", "verify", improved.outcome["decision"]["id"], "--json")
    assert (refused.code, refused.out) == (1, "")
    assert f"held-out record(s) are in the candidate's training split, first {held_out.task_id}" in refused.err

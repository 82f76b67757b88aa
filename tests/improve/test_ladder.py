"""The whole improvement at small size: measured, trained, decided; stopped and gone on."""

import json

import msgspec
import pytest

from doorstep.errors import ProviderError, UsageError
from doorstep.improve.ladder import Ladder
from doorstep.improve.plan import Job
from doorstep.routing.decisions import verify
from doorstep.types import Call, Cost, Decision, ModelVersion, Run, Split
from doorstep.workflows.taskset import seal

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def ladder(plan, services, heard, tmp_path):
    """Return the ladder of a job on a workflow's records; the same name is the same job."""

    def make(workflow, listener=None, name="job_1"):
        taskset = seal(workflow.name, workflow.records)
        dataset = taskset.dataset
        one = msgspec.structs.replace(plan, job_id=name, dataset_id=dataset.dataset_id, dataset_digest=dataset.digest)
        folder = tmp_path / "jobs" / name
        job = Job(folder) if folder.exists() else Job.create(tmp_path / "jobs", one)
        return Ladder(job, workflow, taskset, services, listener or heard())

    return make


def test_a_better_model_is_measured_and_promoted(ladder, workflow, heard, store):
    listener = heard()
    outcome = ladder(workflow, listener).climb()
    assert listener.rungs == ["base", "sft", "rl"]
    base, *trained = [rung.evaluation for rung in outcome.rungs]
    assert (base.n, base.score) == (40, 0.25)
    assert min(evaluation.score for evaluation in trained) > 0.9
    assert (outcome.decision.verdict, outcome.decision.champion) == ("promote", "base")
    assert outcome.decision.statistics["p_value"] < 0.01
    assert verify(store, outcome.decision.decision_id)


def test_what_it_made_and_what_that_cost_are_in_the_record(ladder, workflow, store):
    outcome = ladder(workflow).climb()
    (version,) = store.select(ModelVersion)
    assert version == outcome.candidate
    assert version.path in {rung.model for rung in outcome.rungs}
    assert len(version.adapter_digest) == 64
    spent = {cost.cost_id.rpartition("_")[2]: cost.quantity for cost in store.select(Cost, ref=version.model_id)}
    assert spent.keys() == {"sft", "rl"}
    assert all(seconds > 0 for seconds in spent.values())


def test_a_model_of_shuffled_answers_is_not_promoted(ladder, shuffled):
    outcome = ladder(shuffled).climb()
    assert outcome.decision.verdict == "hold"
    assert outcome.rungs[-1].evaluation.n == 40
    assert outcome.rungs[-1].evaluation.score < 0.5


@pytest.mark.parametrize(
    ("what", "count"),
    [("base/held_out", 20), ("sft", 5), ("rl", 2), ("sft/held_out", 20), ("rl/dev", 8), ("rl/held_out", 40)],
)
def test_stopped_and_gone_on_it_repeats_nothing_and_ends_the_same(ladder, workflow, heard, stopped, store, what, count):
    whole = ladder(workflow, name="job_whole").climb()
    with pytest.raises(stopped):
        ladder(workflow, heard(lambda *now: now == (what, count))).climb()
    outcome = ladder(workflow).climb()
    assert outcome.candidate.adapter_digest == whole.candidate.adapter_digest
    assert outcome.decision.statistics == whole.decision.statistics
    for name in ("base", "sft", "rl"):
        runs = store.select(Run, evaluation_id=f"job_1/{name}/held_out")
        assert len(runs) == len({run.task_id for run in runs}) == 40


def test_going_on_after_the_end_changes_nothing(ladder, workflow, store):
    first = ladder(workflow).climb()
    before = len(store.select(Run)), len(store.select(Call)), len(store.select(Decision))
    again = ladder(workflow).climb()
    assert (again.decision, again.candidate) == (first.decision, first.candidate)
    assert (len(store.select(Run)), len(store.select(Call)), len(store.select(Decision))) == before


def test_held_out_records_are_never_in_a_training_batch(ladder, workflow, monkeypatch):
    trained = []
    from doorstep.improve import stages

    real = stages.batch_of
    monkeypatch.setattr(stages, "batch_of", lambda *given: trained.extend(real(*given)) or real(*given))
    ladder(workflow).climb()
    held_out = {
        task.digest for split in (Split.DEV, Split.HELD_OUT) for task in seal("animals", workflow.records).tasks[split]
    }
    assert trained
    assert not held_out & {example.task.digest for example in trained}


def test_other_records_or_another_file_than_planned_are_refused(ladder, workflow):
    ladder(workflow)
    with workflow.records.open("a") as out:
        out.write(json.dumps({"input": "999 red", "expected": "fox"}) + "\n")
    with pytest.raises(UsageError, match="changed since this improvement was planned"):
        ladder(workflow)


def test_another_base_than_planned_is_refused(ladder, workflow, services):
    lost = ladder(workflow)
    other = msgspec.structs.replace(services, base_digest="e" * 64)
    with pytest.raises(UsageError, match=r"weights dddddddddddd, but Doorstep runs on 'tiny' with eeeeeeeeeeee"):
        Ladder(lost._job, workflow, lost._taskset, other, lost._listener)


def test_training_records_that_are_left_out_are_told_and_kept(ladder, workflow, heard):
    long = json.dumps({"input": "red " * 20, "expected": "fox"}) + "\n"
    workflow.records.write_text(long + workflow.records.read_text())  # the oldest, so in training
    listener = heard()
    outcome = ladder(workflow, listener).climb()
    assert outcome.left_out == listener.unusable
    assert [line.partition(":")[0] for line in outcome.left_out] == ["1"]


def test_a_model_that_gives_no_answers_stops_and_can_be_gone_on_with(ladder, workflow, services, monkeypatch):
    from doorstep.workflows import client

    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    lost = ladder(workflow)
    lost._services = msgspec.structs.replace(services, url="http://127.0.0.1:9")
    with pytest.raises(ProviderError, match=r"tiny gave no answer to 40 of 40 records .*--resume"):
        lost.climb()
    assert ladder(workflow).climb().decision.verdict == "promote"


def test_records_that_no_training_can_use_are_said(ladder, workflow):
    with pytest.raises(UsageError, match="the right answer has 2 tokens; raise MAX_TOKENS"):
        ladder(msgspec.structs.replace(workflow, max_tokens=1)).climb()

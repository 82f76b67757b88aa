"""A TrainingRun that is stopped anywhere ends with the same adapter as one that never was."""

import time

import msgspec
import pytest
import tinker
from training_door import KEY, connected

from doorstep.errors import EngineError
from doorstep.grading.graders import CodeGrader
from doorstep.improve.examples import examples
from doorstep.improve.ladder import adapter_digest
from doorstep.improve.plan import Job
from doorstep.improve.stages import Rl, Sft
from doorstep.improve.training_run import TrainingRun
from doorstep.types import TrainingStep
from doorstep.workflows.taskset import TrainingSet

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def train(plan, sealed, workflow, renderer, store, url, tmp_path):
    """Train a job (of the same plan) until the listener stops it; each call is a new process's client."""
    data = examples(TrainingSet(sealed), workflow, renderer, 16)[0]

    def go(name, listener=None, kind=Job):
        one = msgspec.structs.replace(plan, job_id=f"job_{name}")
        folder = tmp_path / "jobs" / one.job_id
        if not folder.exists():
            Job.create(tmp_path / "jobs", one)
        stages = [Sft(one, data), Rl(one, data, workflow, renderer, CodeGrader())]
        with connected(url) as service:
            rest = tinker.RestClient(base_url=url, api_key=KEY)
            run = TrainingRun(kind(folder), service, rest, store, cpu_clock=time.process_time, listener=listener)
            return run.train(stages)

    return go


@pytest.fixture
def digests(url):
    return lambda paths: {stage: adapter_digest(url, "tml-any", path) for stage, path in paths.items()}


def test_stopped_at_any_step_it_ends_with_the_same_adapters(train, digests, stopped):
    whole = digests(train("whole"))
    for place, (stage, step) in enumerate([("sft", 1), ("sft", 4), ("sft", 7), ("rl", 1), ("rl", 3), ("rl", 5)]):

        def stop(name, done, of, metrics, at=(stage, step)):
            if (name, done) == at:
                raise stopped

        with pytest.raises(stopped):
            train(f"stopped{place}", stop)
        assert digests(train(f"stopped{place}")) == whole
    assert whole["sft"] != whole["rl"]


def test_stopped_between_a_saved_state_and_the_note_of_it(train, digests, stopped):
    class Cut(Job):
        def save(self, progress):
            if progress.step == 3 and progress.stage == "rl":
                raise stopped
            super().save(progress)

    whole = digests(train("whole"))
    with pytest.raises(stopped):
        train("cut", kind=Cut)
    assert digests(train("cut")) == whole


def test_stopped_before_the_weights_of_a_stage_are_noted(train, digests, stopped):
    class Cut(Job):
        def save(self, progress):
            if "sft" in progress.samplers:
                raise stopped
            super().save(progress)

    with pytest.raises(stopped):
        train("cut", kind=Cut)
    steps = []
    assert digests(train("cut", lambda stage, *rest: steps.append(stage))) == digests(train("whole"))
    assert set(steps) == {"rl"}


def test_where_the_engine_dies_it_goes_on_from_the_last_safe_point(train, digests, caplog):
    deaths = [("rl", 5), ("rl", 2), ("sft", 4)]

    def die(stage, done, of, metrics):
        if deaths and (stage, done) == deaths[-1]:
            deaths.pop()
            raise tinker.TinkerError("the engine process has ended")

    assert digests(train("dying", die)) == digests(train("whole"))
    assert not deaths
    assert caplog.text.count("goes on from its last safe point: the engine process has ended") == 3


def test_what_breaks_off_again_and_again_is_given_up(train):
    def die(stage, done, of, metrics):
        if stage == "rl":
            raise tinker.TinkerError("no")

    with pytest.raises(EngineError, match="broke off 3 times at the same place: no"):
        train("dying", die)


def test_a_repeated_step_has_one_row(train, store, stopped):
    def stop(stage, done, of, metrics):
        if (stage, done) == ("rl", 2):
            raise stopped

    with pytest.raises(stopped):
        train("again", stop)
    first = store.select(TrainingStep, training_run="job_again")
    train("again")
    rows = store.select(TrainingStep, training_run="job_again")
    assert len(rows) == len({(row.stage, row.step) for row in rows})
    assert set(map(str, first)) <= set(map(str, rows))
    assert [row.step for row in rows if row.stage == "rl"] == [0, 1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(train):
    paths, steps = train("done"), []
    assert train("done", lambda *heard: steps.append(heard)) == paths
    assert steps == []


def test_only_the_newest_safe_point_is_kept(train, url, tmp_path):
    train("one")
    state = Job(tmp_path / "jobs" / "job_one").progress().state
    rest = tinker.RestClient(base_url=url, api_key=KEY)
    runs = rest.list_training_runs().result().training_runs
    (run,) = [run.training_run_id for run in runs]
    listed = rest.list_checkpoints(run).result().checkpoints
    states = [item.tinker_path for item in listed if "/weights/" in item.tinker_path]
    assert states == [state]

"""SFT and RL steps through the real SDK on a model that learns."""

import msgspec
import pytest

from doorstep.errors import UsageError
from doorstep.grading.graders import CodeGrader
from doorstep.improve.examples import examples
from doorstep.improve.stages import Rl, Sft, falling
from doorstep.workflows.taskset import TrainingSet

# The SDK does not close the connection over which it fetched its settings.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def data(sealed, workflow, renderer):
    return examples(TrainingSet(sealed), workflow, renderer, 16)[0]


@pytest.fixture
def client(service):
    return service.create_lora_training_client(base_model="tiny", rank=8, seed=0).result()


@pytest.fixture
def rl(plan, data, workflow, renderer):
    """Make the stage; every answer has room and can be parsed, so that the grader alone decides."""
    return lambda grade=None, room=64, **changes: Rl(
        msgspec.structs.replace(plan, rl=msgspec.structs.replace(plan.rl, **changes)),
        [msgspec.structs.replace(example, room=room) for example in data],
        msgspec.structs.replace(workflow, parse=str),
        renderer,
        CodeGrader(grade),
    )


def test_sft_lowers_the_loss(client, plan, data):
    stage = Sft(plan, data)
    losses = [stage.step(client, step)["loss"] for step in range(stage.steps)]
    assert losses[-1] < losses[0] / 4


def test_rl_raises_what_the_grader_says(client, rl):
    stage = rl(steps=30, learning_rate=60.0)
    figures = [stage.step(client, step) for step in range(stage.steps)]
    assert figures[0]["exact"] < 0.5
    assert figures[-1]["exact"] > figures[0]["exact"] + 0.2


def test_a_step_is_a_function_of_the_weights_the_seed_and_its_number(service, rl):
    def two_steps():
        client = service.create_lora_training_client(base_model="tiny", rank=8, seed=0).result()
        return [rl().step(client, step) for step in (0, 3)]

    assert two_steps() == two_steps()


def test_groups_that_are_all_as_good_teach_nothing(client, rl):
    figures = rl(lambda value, expected: 0.1, samples=3).step(client, 0)  # 3 × 0.1 / 3 is not 0.1 in floats
    assert figures["used_groups"] == 0


def test_a_sample_without_a_grade_is_left_out_and_not_a_zero(client, rl):
    figures = rl(lambda value, expected: 1.0 if value == "fox" else None).step(client, 0)
    assert (figures["exact"], figures["used_groups"]) == (1.0, 0)


def test_a_grader_that_never_gives_a_grade_stops_the_training(client, rl):
    with pytest.raises(UsageError, match="no grade to any sample"):
        rl(lambda value, expected: None).step(client, 0)


def test_an_answer_that_was_cut_is_wrong_whatever_it_says(client, rl):
    figures = rl(lambda value, expected: 1.0 if value else None, room=1).step(client, 0)  # no room for the end token
    assert figures["exact"] == 0


def test_the_rate_falls_to_zero_after_the_last_step():
    assert [falling(8.0, step, 4) for step in range(4)] == [8.0, 6.0, 4.0, 2.0]

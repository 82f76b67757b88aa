"""What names of models stand for."""

import pytest

from doorstep.config import ModelSettings, Share, TrafficSettings
from doorstep.errors import NotFound, UsageError
from doorstep.gateway.models import Models


class Named:
    def __init__(self, name):
        self.name = name
        self.keys = ()
        self.closed = 0

    async def close(self):
        self.closed += 1


class Routes(dict):
    def model_for(self, workflow):
        return (self[workflow], None) if workflow in self else None


LOCAL, OPENAI, OTHER = Named("local"), Named("openai"), Named("other")
FAST = ModelSettings(
    targets=[Share(model="openai/mini", weight=9), "other/small"], fallback=["tiny"], retries=0, first_chunk_s=3
)


def models_of(aliases=None, routes=None, traffic=None):
    providers = {"openai": OPENAI, "other": OTHER}
    return Models(LOCAL, ("tiny", "folder/tiny"), providers, Routes(routes or {}), aliases, traffic)


def shape(plan):
    return [f"{target.provider.name}/{target.model}" for target in (*plan.targets, *plan.fallback)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tiny", "local/tiny"),
        ("folder/tiny", "local/tiny"),
        ("tinker://run/sampler", "local/tiny"),
        ("openai/gpt-5", "openai/gpt-5"),
        ("other/a/b:free", "other/a/b:free"),
    ],
)
def test_a_plain_name_is_one_target(name, found):
    plan = models_of().resolve(name)
    assert (shape(plan), plan.alias, plan.policy) == ([found], None, TrafficSettings())


def test_an_alias_shares_its_calls_and_falls_back():
    plan = models_of({"fast": FAST}).resolve("fast")
    assert shape(plan) == ["openai/mini", "other/small", "local/tiny"]
    assert plan.weights == (9.0, 1.0)
    assert plan.alias is FAST


def test_an_alias_says_what_it_wants_otherwise_than_the_rest():
    plan = models_of({"fast": FAST}, traffic=TrafficSettings(retries=5, attempts=9)).resolve("fast")
    assert (plan.policy.retries, plan.policy.attempts, plan.policy.first_chunk_s) == (0, 9, 3)


def test_a_workflow_is_the_model_with_its_traffic():
    models = models_of({"fast": FAST}, {"orders": "tinker://run/7", "mail": "fast"})
    assert models.resolve("workflow/orders").targets[0].adapter == "tinker://run/7"
    assert models.resolve("workflow/mail").alias is FAST


def test_an_alias_may_stand_before_a_real_name():
    alias = ModelSettings(targets=["openai/gpt-5"], fallback=["other/gpt-5"])
    assert shape(models_of({"openai/gpt-5": alias}).resolve("openai/gpt-5")) == ["openai/gpt-5", "other/gpt-5"]


@pytest.mark.parametrize("name", ["gpt-5", "nobody/m", "openai/", "", "workflow/none"])
def test_an_unknown_name_says_what_there_is(name):
    with pytest.raises(NotFound, match=r"fast, tiny, .*openai/MODEL"):
        models_of({"fast": FAST}).resolve(name)


@pytest.mark.parametrize("name", ["nobody/m", "fast", "slow"])
def test_an_alias_that_could_never_answer_is_refused_at_the_start(name):
    aliases = {"fast": FAST, "slow": ModelSettings(targets=["tiny"], fallback=[name])}
    with pytest.raises(UsageError, match=r"\[models.slow\]"):
        models_of(aliases)


def test_the_listing_has_what_the_settings_name():
    listing = models_of({"fast": FAST}).listing()
    assert [(entry["id"], entry["owned_by"]) for entry in listing] == [
        ("fast", "doorstep"), ("tiny", "doorstep"), ("openai/mini", "openai"), ("other/small", "other"),
    ]  # fmt: skip


def test_any_served_name_has_an_entry():
    models = models_of({"fast": FAST})
    assert models.one("openai/never-listed")["id"] == "openai/never-listed"
    with pytest.raises(NotFound):
        models.one("nobody/m")


async def test_all_providers_are_let_go():
    before = OPENAI.closed, LOCAL.closed
    await models_of().close()
    assert (OPENAI.closed, LOCAL.closed) == (before[0] + 1, before[1] + 1)

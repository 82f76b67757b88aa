"""The parts of doorstep.toml about traffic, as people write them."""

import pytest

from doorstep import config
from doorstep.config import Share
from doorstep.errors import UsageError

WRITTEN = """
[models.fast]
targets = [{model = "openai/gpt-5-mini", weight = 9}, {model = "anthropic/claude-haiku-4-5", weight = 1}]
fallback = ["openrouter/some/model"]
retries = 1
first_chunk_s = 5
cache = "key"

[traffic]
budget_s = 20

[cache]
ttl_s = 60
"""


def load(tmp_path, text):
    file = tmp_path / "doorstep.toml"
    file.write_text(text)
    return config.load(file)


def test_an_alias_as_it_is_written(tmp_path):
    settings = load(tmp_path, WRITTEN)
    fast = settings.models["fast"]
    assert fast.targets == [
        Share(model="openai/gpt-5-mini", weight=9), Share(model="anthropic/claude-haiku-4-5", weight=1),
    ]  # fmt: skip
    policy = fast.policy(settings.traffic)
    assert (policy.retries, policy.first_chunk_s, policy.budget_s, policy.attempts) == (1, 5.0, 20.0, 8)
    assert (fast.cache, settings.cache.ttl_s) == ("key", 60.0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ('targets = []', "targets"),
        ('targets = ["a/b"]\nretries = -1', "retries"),
        ('targets = ["a/b"]\nattempts = 0', "attempts"),
        ('targets = ["a/b"]\nretry = 1', "retry"),
        ('targets = ["a/b"]\ncache = "maybe"', "cache"),
        ('targets = [{model = "a/b", weight = 0}]', "targets"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(tmp_path, wrong, field):
    with pytest.raises(UsageError, match=field):
        load(tmp_path, f"[models.fast]\n{wrong}")


def test_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("DOORSTEP_TRAFFIC_RETRIES", "7")
    assert load(tmp_path, "[traffic]\nretries = 1").traffic.retries == 7

"""Settings of LiteLLM and TensorZero become a doorstep.toml that works, and all that is not in it is noted."""

import tomllib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from doorstep import config
from doorstep.errors import BadInput
from doorstep.gateway.migration import litellm, tensorzero_config
from doorstep.gateway.migration.settings import Draft, Place
from doorstep.gateway.models import Models
from doorstep.gateway.providers.fake import FakeProvider

LITELLM = """
model_list:
  - model_name: fast
    litellm_params: {model: openai/gpt-5-mini, api_key: os.environ/OPENAI_API_KEY, weight: 3}
  - model_name: fast
    litellm_params: {model: groq/llama-3, api_key: os.environ/GROQ_KEY_2, weight: 1}
  - model_name: smart
    litellm_params: {model: claude-opus-5, api_key: os.environ/ANTHROPIC_API_KEY, num_retries: 5, stream_timeout: 20}
  - model_name: house
    litellm_params: {model: hosted_vllm/qwen, api_base: "http://gpu1.internal:8000/v1", timeout: 30}
    model_info: {mode: chat, input_cost_per_token: 0.0000002, output_cost_per_token: 0.0000006}
router_settings: {routing_strategy: simple-shuffle, num_retries: 3, model_group_alias: {gpt-4: fast}}
litellm_settings:
  fallbacks: [{fast: [smart, house]}]
  cache: true
  cache_params: {type: local, ttl: 600}
"""
TENSORZERO = """
[gateway]
bind_address = "0.0.0.0:3000"

[models.gpt]
routing = ["openai", "backup"]
timeouts = { streaming = { ttft_ms = 3000 } }

[models.gpt.providers.openai]
type = "openai"
model_name = "gpt-5"
api_key_location = "env::MY_OPENAI_KEY"
cost = [
  { pointer = "/usage/prompt_tokens", cost_per_million = 2.5, required = true },
  { pointer = "/usage/completion_tokens", cost_per_million = 10.0, required = true },
]

[models.gpt.providers.backup]
type = "vllm"
model_name = "qwen"
api_base = "http://10.0.0.7:8000/v1/"

[functions.draft]
type = "chat"

[functions.draft.variants.large]
type = "chat_completion"
model = "gpt"
weight = 0.9
retries = { num_retries = 4 }

[functions.draft.variants.small]
type = "chat_completion"
model = "anthropic::claude-haiku-4-5"
weight = 0.1
system_template = "prompts/small.minijinja"

[functions.draft.variants.later]
type = "chat_completion"
model = "google_ai_studio_gemini::gemini-3"

[metrics.accepted]
type = "boolean"
"""


@pytest.fixture
def settings_of(tmp_path, monkeypatch):
    """Load a draft as a server does, with every name that it has resolved."""
    for provider in config.KNOWN_PROVIDERS.values():
        for name in provider.key_names:
            monkeypatch.setenv(name, "k")

    def load(draft: Draft) -> tuple[config.Settings, Models]:
        file = tmp_path / "doorstep.toml"
        file.write_text(draft.toml(), "utf-8")
        settings = config.load(file)
        fakes = {name: FakeProvider(name) for name in settings.providers}
        return settings, Models(None, (), fakes, None, settings.models, settings.traffic)

    return load


def reached(models: Models, name: str) -> tuple[list[str], list[str]]:
    """Return what answers for a name, and what after it."""
    plan = models.resolve(name)
    return tuple(
        [f"{target.provider.name}/{target.model}" for target in part] for part in (plan.targets, plan.fallback)
    )


def noted(draft: Draft) -> dict[str, str]:
    return {note.where: note.why for note in draft.notes}


def litellm_draft(text: str) -> Draft:
    return litellm.draft(yaml.safe_load(text))


def test_a_litellm_configuration_works(settings_of):
    settings, models = settings_of(litellm_draft(LITELLM))
    after = ["anthropic/claude-opus-5", "gpu1/qwen"]
    assert reached(models, "fast") == (["openai/gpt-5-mini", "groq/llama-3"], after)
    assert reached(models, "gpt-4") == reached(models, "fast")
    assert models.resolve("fast").weights == (3.0, 1.0)
    assert (models.resolve("smart").policy.retries, models.resolve("smart").policy.first_chunk_s) == (5, 20.0)
    assert (settings.traffic.retries, settings.cache.ttl_s, settings.models["fast"].cache) == (3, 600.0, "all")


def test_litellm_providers_have_addresses_and_the_names_of_keys(settings_of):
    settings, _ = settings_of(litellm_draft(LITELLM))
    house = settings.providers["gpu1"]
    assert (house.base_url, house.kind, house.key_env) == ("http://gpu1.internal:8000/v1", "compatible", None)
    assert house.total_s == 30.0
    assert settings.providers["groq"].key_env == "GROQ_KEY_2"
    assert settings.providers["openai"] == config.KNOWN_PROVIDERS["openai"]
    price = settings.prices.models["gpu1/qwen"]
    assert (price.input, price.output) == (0.2, 0.6)


def test_what_litellm_says_that_only_informs_is_noted():
    assert noted(litellm_draft(LITELLM)) == {"model_list[3].model_info": "only informs, and is left out: mode"}


def test_deployments_with_keys_of_their_own_are_providers_of_their_own(settings_of):
    text = """
    model_list:
      - {model_name: a, litellm_params: {model: gpt-5, api_key: os.environ/KEY_A, rpm: 100}}
      - {model_name: a, litellm_params: {model: gpt-5, api_key: os.environ/KEY_B, rpm: 300}}
      - {model_name: a, litellm_params: {model: deepseek/v4, order: 2, rpm: 1}}
    """
    draft = litellm_draft(text)
    settings, models = settings_of(draft)
    assert reached(models, "a") == (["openai/gpt-5", "openai-2/gpt-5"], ["deepseek/v4"])
    assert models.resolve("a").weights == (100.0, 300.0)
    second = settings.providers["openai-2"]
    assert (second.base_url, second.kind, second.key_env) == ("https://api.openai.com/v1", "openai", "KEY_B")
    assert "counts as its weight" in noted(draft)["model_list[0].litellm_params.rpm"]


@pytest.mark.parametrize(
    ("model", "name", "url"),
    [
        ("{model: ollama/llama3}", "local-11434/llama3", "http://localhost:11434/v1"),
        (
            "{model: openai/qwen, api_base: 'https://api.house.example/v1/'}",
            "house/qwen",
            "https://api.house.example/v1",
        ),
        ("{model: anthropic/c, api_base: 'https://api.anthropic.com'}", "anthropic/c", "https://api.anthropic.com/v1"),
        ("{model: gemini/g}", "google/g", "https://generativelanguage.googleapis.com/v1beta"),
        ("{model: cerebras/llama}", "cerebras/llama", "https://api.cerebras.ai/v1"),
        (
            "{model: azure/my-gpt, api_base: 'https://x.openai.azure.com/'}",
            "azure/my-gpt",
            "https://x.openai.azure.com/openai/v1",
        ),
        ("{model: openrouter/z-ai/glm}", "openrouter/z-ai/glm", "https://openrouter.ai/api/v1"),
    ],
)
def test_models_of_every_kind_of_place_are_reached(settings_of, model, name, url):
    settings, models = settings_of(litellm_draft(f"model_list: [{{model_name: a, litellm_params: {model}}}]"))
    assert reached(models, "a")[0] == [name]
    assert settings.providers[name.partition("/")[0]].base_url == url


def test_services_with_an_api_of_their_own_are_asked_through_the_library(settings_of):
    text = """
    model_list:
      - {model_name: a, litellm_params: {model: bedrock/converse/meta.llama3, aws_region_name: eu-central-1}}
      - model_name: b
        litellm_params: {model: vertex_ai/gemini-3, vertex_project: p, vertex_location: os.environ/WHERE}
    """
    draft = litellm_draft(text)
    settings, models = settings_of(draft)
    assert (reached(models, "a")[0], reached(models, "b")[0]) == (["bedrock/meta.llama3"], ["vertex/gemini-3"])
    assert settings.providers["bedrock"].options == {"provider": "bedrock", "region_name": "eu-central-1"}
    assert settings.providers["vertex"].options == {"provider": "vertexai", "project": "p"}
    assert [note.why for note in draft.notes] == ["write the location that is in WHERE into its options"]


def test_services_of_clouds_are_taken_over_from_tensorzero_too(settings_of):
    text = """
    [models.a]
    routing = ["azure", "bedrock"]
    [models.a.providers.azure]
    type = "azure"
    deployment_id = "my-gpt"
    endpoint = "https://x.openai.azure.com"
    [models.a.providers.bedrock]
    type = "aws_bedrock"
    model_id = "meta.llama3"
    region = "eu-central-1"
    """
    draft = tensorzero_config.draft(tomllib.loads(text))
    settings, models = settings_of(draft)
    assert reached(models, "tensorzero::model_name::a") == (["azure/my-gpt"], ["bedrock/meta.llama3"])
    assert settings.providers["azure"].base_url == "https://x.openai.azure.com/openai/v1"
    assert (settings.providers["azure"].key_env, settings.providers["bedrock"].kind) == ("AZURE_API_KEY", "any-llm")
    assert draft.notes == []


def test_fallbacks_of_both_sections_and_those_of_everyone_count(settings_of):
    text = """
    model_list:
      - {model_name: a, litellm_params: {model: gpt-5}}
      - {model_name: b, litellm_params: {model: groq/b}}
      - {model_name: c, litellm_params: {model: groq/c}}
      - {model_name: d, litellm_params: {model: groq/d}}
    router_settings: {fallbacks: [{a: [b]}]}
    litellm_settings: {fallbacks: [{a: [c]}], default_fallbacks: [d]}
    """
    _, models = settings_of(litellm_draft(text))
    assert reached(models, "a")[1] == ["groq/c", "groq/b", "groq/d"]
    assert (reached(models, "b")[1], reached(models, "d")[1]) == (["groq/d"], [])


def test_an_embedding_model_of_tensorzero_keeps_its_name(settings_of):
    text = '[embedding_models.e.providers.o]\ntype = "openai"\nmodel_name = "te-3"\n'
    _, models = settings_of(tensorzero_config.draft(tomllib.loads(text)))
    assert reached(models, "tensorzero::embedding_model_name::e")[0] == ["openai/te-3"]


def test_a_key_in_the_file_is_not_taken_over():
    draft = litellm_draft("model_list: [{model_name: a, litellm_params: {model: gpt-5, api_key: sk-secret}}]")
    assert "sk-secret" not in draft.toml()
    assert "sk-secret" not in str(draft.notes)
    assert "environment variable" in noted(draft)["model_list[0].litellm_params.api_key"]


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ("router_settings: {routing_strategy: latency-based-routing}", "router_settings.routing_strategy"),
        ("router_settings: {redis_host: x}", "router_settings.redis_host"),
        ("litellm_settings: {drop_params: true}", "litellm_settings.drop_params"),
        ("litellm_settings: {success_callback: [langfuse]}", "litellm_settings.success_callback"),
        ("litellm_settings: {fallbacks: [{x: [a]}]}", "fallbacks.x"),
        ("litellm_settings: {fallbacks: [{a: [x]}]}", "fallbacks.a"),
        ("litellm_settings: {context_window_fallbacks: [{a: [b]}]}", "litellm_settings.context_window_fallbacks"),
        ("litellm_settings: {cache: true, cache_params: {type: redis-semantic}}", "litellm_settings.cache_params.type"),
        ("litellm_settings: {max_budget: 100, budget_duration: 30d}", "litellm_settings.max_budget"),
        ("general_settings: {master_key: sk-1}", "general_settings.master_key"),
        ("general_settings: {alerting: [slack]}", "general_settings.alerting"),
        ("environment_variables: {REDIS_HOST: x}", "environment_variables.REDIS_HOST"),
        ("guardrails: []", "config.guardrails"),
    ],
)
def test_nothing_of_litellm_is_left_out_silently(section, where):
    draft = litellm_draft(f"model_list: [{{model_name: a, litellm_params: {{model: gpt-5}}}}]\n{section}")
    assert list(noted(draft)) == [where]


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ("{model_name: a}", "model_list[0]"),
        ("{model_name: a, litellm_params: {model: azure/x}}", "model_list[0].litellm_params.api_base"),
        ("{model_name: a, litellm_params: {model: sagemaker/x}}", "model_list[0].litellm_params.model"),
        ("{model_name: a, litellm_params: {model: vertex_ai/claude-5}}", "model_list[0].litellm_params.model"),
        (
            "{model_name: a, litellm_params: {model: azure/x, api_base: 'https://x', api_version: v}}",
            "model_list[0].litellm_params.api_version",
        ),
        ("{model_name: a, litellm_params: {model: mystery}}", "model_list[0].litellm_params.model"),
        ("{model_name: a, litellm_params: {model: hosted_vllm/x}}", "model_list[0].litellm_params.api_base"),
        ("{model_name: a, litellm_params: {model: gpt-5, temperature: 0}}", "model_list[0].litellm_params.temperature"),
        ("{model_name: 'claude-*', litellm_params: {model: 'anthropic/claude-*'}}", "model_list[0].model_name"),
        ("{model_name: a, litellm_params: {model: azure/}}", "model_list[0].litellm_params.model"),
        ("{model_name: gem, litellm_params: {model: gemini/*}}", "model_list[0].model_name"),
    ],
)
def test_a_model_that_cannot_be_taken_over_is_noted(entry, where):
    assert where in noted(litellm_draft(f"model_list: [{entry}]"))


def test_budgets_are_noted_as_the_command_that_sets_them():
    draft = litellm_draft(
        "model_list: []\nlitellm_settings: {max_budget: 100, default_key_generate_params: {rpm_limit: 60, models: [a]}}"
    )
    said = noted(draft)
    assert "doorstep keys create --usd-per-month 100" in said["litellm_settings.max_budget"]
    assert "--requests-per-minute 60 --model 'a'" in said["litellm_settings.default_key_generate_params"]


@pytest.mark.parametrize("text", ["[]", "model_list: 7", "hello"])
def test_what_is_no_litellm_configuration_is_refused(text):
    with pytest.raises(BadInput):
        litellm_draft(text)


def test_a_tensorzero_configuration_works_under_the_names_that_clients_use(settings_of):
    draft = tensorzero_config.draft(tomllib.loads(TENSORZERO))
    _, models = settings_of(draft)
    targets, after = reached(models, "tensorzero::function_name::draft")
    assert targets == ["openai/gpt-5", "anthropic/claude-haiku-4-5"]
    assert after == ["10-0-0-7/qwen", "google/gemini-3"]
    plan = models.resolve("tensorzero::function_name::draft")
    assert (plan.weights, plan.policy.retries) == ((0.9, 0.1), 4)
    assert reached(models, "tensorzero::model_name::gpt") == (["openai/gpt-5"], ["10-0-0-7/qwen"])
    assert models.resolve("tensorzero::model_name::gpt").policy.first_chunk_s == 3.0


def test_tensorzero_providers_have_their_keys_and_prices(settings_of):
    settings, _ = settings_of(tensorzero_config.draft(tomllib.loads(TENSORZERO)))
    assert settings.providers["openai"].key_env == "MY_OPENAI_KEY"
    assert settings.providers["google"].key_env == "GOOGLE_AI_STUDIO_API_KEY"
    assert settings.providers["10-0-0-7"].key_env == "VLLM_API_KEY"
    assert (settings.prices.models["openai/gpt-5"].input, settings.prices.models["openai/gpt-5"].output) == (2.5, 10.0)


def test_nothing_of_tensorzero_is_left_out_silently():
    assert list(noted(tensorzero_config.draft(tomllib.loads(TENSORZERO)))) == [
        "functions.draft.variants.small",
        "gateway",
        "metrics",
    ]


@pytest.mark.parametrize(
    ("experiment", "weights", "after"),
    [
        ('type = "static"\ncandidate_variants = { a = 0.25, b = 0.75 }', {"openai/a": 0.25, "openai/b": 0.75}, []),
        ('type = "static"\ncandidate_variants = ["a"]\nfallback_variants = ["b"]', {"openai/a": 1.0}, ["openai/b"]),
        ('type = "uniform"', {"openai/a": 1.0, "openai/b": 1.0}, []),
        ('type = "track_and_stop"\ncandidate_variants = ["a", "b"]', {"openai/a": 1.0, "openai/b": 1.0}, []),
    ],
)
def test_experiments_become_weights(settings_of, experiment, weights, after):
    variants = "".join(
        f'[functions.f.variants.{name}]\ntype = "chat_completion"\nmodel = "openai::{name}"\n' for name in "ab"
    )
    draft = tensorzero_config.draft(tomllib.loads(f"{variants}[functions.f.experimentation]\n{experiment}\n"))
    plan = settings_of(draft)[1].resolve("tensorzero::function_name::f")
    found = {
        f"{target.provider.name}/{target.model}": weight
        for target, weight in zip(plan.targets, plan.weights, strict=True)
    }
    assert found == weights
    assert [f"{target.provider.name}/{target.model}" for target in plan.fallback] == after
    assert bool(draft.notes) is ("track" in experiment)


def test_a_tensorzero_configuration_may_be_in_several_files(settings_of):
    models, functions = TENSORZERO.split("[functions.draft]")
    found = tensorzero_config.merged(
        [("a.toml", tomllib.loads(models)), ("b.toml", tomllib.loads(f"[functions.draft]{functions}"))]
    )
    assert found == tomllib.loads(TENSORZERO)
    with pytest.raises(BadInput, match=r"b.toml: functions.draft.type is in another file too"):
        tensorzero_config.merged([("a.toml", found), ("b.toml", {"functions": {"draft": {"type": "json"}}})])


def test_a_function_that_nothing_can_answer_for_is_noted():
    text = '[functions.f.variants.a]\ntype = "chat_completion"\nmodel = "azure::x"\n'
    said = noted(tensorzero_config.draft(tomllib.loads(text)))
    assert said["tensorzero::function_name::f"] == "nothing is left that could answer for it"
    with pytest.raises(BadInput, match="no model and no function"):
        tensorzero_config.draft({})


@given(name=st.text(min_size=1, max_size=20), model=st.text(min_size=1, max_size=20), weight=st.floats(1e-6, 1e6))
def test_every_name_is_written_as_toml_has_it(name, model, weight):
    draft = Draft()
    provider = draft.provider(Place("house", (), "http://house/v1"))
    group = draft.groups.setdefault(name, litellm.Group())
    group.add(f"{provider}/{model}", weight)
    group.add(f"{provider}/{model}2", 2 * weight)
    found = tomllib.loads(draft.toml())["models"][name]["targets"]
    assert [target["model"] for target in found] == [f"house/{model}", f"house/{model}2"]
    assert found[0]["weight"] == pytest.approx(weight, abs=1e-12)

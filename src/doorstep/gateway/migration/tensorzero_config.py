"""TensorZero's ``tensorzero.toml`` as settings of our own.

A function becomes a name for the models of its variants, a model a name for its providers, both as clients call them
(``tensorzero::function_name::NAME``), so that these need no change but the address. Prompts, schemas and tools of a
function are not the gateway's here: they are noted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from doorstep.config import ProviderKind
from doorstep.errors import BadInput
from doorstep.gateway.migration.files import listing
from doorstep.gateway.migration.settings import Draft, Group, Place, azure, host_name, library

FUNCTION = "tensorzero::function_name::"
MODEL = "tensorzero::model_name::"
EMBEDDING = "tensorzero::embedding_model_name::"
TYPES = {  # as TensorZero calls them: our name, and the variable with the key where it is another than ours
    "openai": ("openai", ()), "anthropic": ("anthropic", ()), "deepseek": ("deepseek", ()), "groq": ("groq", ()),
    "google_ai_studio_gemini": ("google", ("GOOGLE_AI_STUDIO_API_KEY",)), "mistral": ("mistral", ()),
    "together": ("together", ()), "fireworks": ("fireworks", ()), "xai": ("xai", ()),
    "openrouter": ("openrouter", ()),
}  # fmt: skip
SERVERS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY", "tgi": "TGI_API_KEY", "hyperbolic": "HYPERBOLIC_API_KEY"}
HYPERBOLIC = "https://api.hyperbolic.xyz/v1"
LIBRARY = {
    "aws_bedrock": ("bedrock", {"region": "region_name"}),
    "gcp_vertex_gemini": ("vertexai", {"project_id": "project", "location": "location"}),
}
OPTIONS = ("region", "project_id", "location")
MODEL_NAMES = ("model_name", "model_id", "deployment_id")
KINDS: dict[str, ProviderKind] = {"openai": "openai", "anthropic": "anthropic"}
POINTERS = {
    "/usage/prompt_tokens": "input",
    "/usage/input_tokens": "input",
    "/usage/completion_tokens": "output",
    "/usage/output_tokens": "output",
}
WHOLE = {
    "gateway": "the gateway is set under [serve]",
    "metrics": "metrics need no settings: feedback of any name is taken at POST /feedback",
    "tools": "a client says its tools with its request",
    "evaluations": "graders are part of a workflow: doorstep init",
    "rate_limiting": "limits belong to keys and to [workflows.NAME]",
    "optimizers": "doorstep improve trains",
}


def merged(parts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a configuration that is in several files, by their names; ``BadInput`` where two say the same thing."""
    whole: dict[str, Any] = {}
    for name, part in parts:
        _merge(whole, part, name, "")
    return whole


def _merge(whole: dict[str, Any], part: Mapping[str, Any], name: str, path: str) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(whole.setdefault(key, {}), dict):
            _merge(whole[key], value, name, f"{path}{key}.")
        elif key in whole:
            raise BadInput(name, f"{path}{key} is in another file too")
        else:
            whole[key] = value


def draft(config: Any) -> Draft:
    """Return the settings and the notes that a configuration comes to."""
    if not isinstance(config, dict):
        raise BadInput("config", "it is no table")
    made = Draft()
    chains: dict[str, list[str]] = {}
    for name, model in _tables(made, config, "models"):
        chains[name] = _model(made, f"models.{name}", f"{MODEL}{name}", model)
    for name, model in _tables(made, config, "embedding_models"):
        _model(made, f"embedding_models.{name}", f"{EMBEDDING}{name}", model)
    for name, function in _tables(made, config, "functions"):
        _function(made, name, function, chains)
    for section in config:
        if section not in ("models", "embedding_models", "functions"):
            made.note(section, WHOLE.get(section, "there is no such setting here"))
    if not made.groups:
        raise BadInput("config", "there is no model and no function in it")
    made.note_unanswered()
    return made


def _tables(made: Draft, config: Mapping[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, table in made.table(section, config.get(section)).items():
        if isinstance(table, dict):
            yield name, table
        else:
            made.note(f"{section}.{name}", "it is no table")


# Models


def _model(made: Draft, where: str, name: str, model: Mapping[str, Any]) -> list[str]:
    """Add a name for a model's providers, in their order; return what they are called here."""
    chain: list[str] = []
    providers = made.table(f"{where}.providers", model.get("providers"))
    for provider in map(str, made.array(f"{where}.routing", model.get("routing")) or list(providers)):
        given = providers.get(provider)
        if not isinstance(given, dict):
            made.note(f"{where}.routing", f"there is no provider {provider}")
            continue
        found = _provider(made, f"{where}.providers.{provider}", given)
        if found is not None:
            chain.append(found)
    group = Group()
    if chain:
        group.add(chain[0])
        group.fall_back_to(chain[1:])
    made.groups[name] = group
    timeouts = model.get("timeouts")
    first_ms = _within(timeouts, "streaming", "ttft_ms")
    if isinstance(first_ms, int | float) and first_ms > 0:
        group.settings["first_chunk_s"] = first_ms / 1000
    if timeouts and timeouts != {"streaming": {"ttft_ms": first_ms}}:
        made.note(f"{where}.timeouts", "only the time to the first token is taken; total_s belongs to a provider here")
    made.note_rest(where, model, ("routing", "providers", "timeouts"), "there is no such setting here")
    return chain


def _provider(made: Draft, where: str, given: Mapping[str, Any]) -> str | None:
    """Return what a provider's model is called here, or note why it cannot be reached."""
    kind = given.get("type")
    model = next((given[name] for name in MODEL_NAMES if name in given), None)
    taken = ("type", *MODEL_NAMES, "api_base", "endpoint", "api_key_location", "cost", *OPTIONS)
    made.note_rest(where, given, taken, "the client's request has to say it")
    if not isinstance(kind, str) or not isinstance(model, str):
        made.note(where, "it has no type, or no model_name")
        return None
    place = _place(made, where, kind, given)
    if place is None:
        return None
    name = f"{made.provider(place)}/{model}"
    _prices(made, f"{where}.cost", name, given.get("cost"))
    return name


def _place(made: Draft, where: str, kind: str, given: Mapping[str, Any]) -> Place | None:
    url = given.get("api_base")
    keys = _keys(made, f"{where}.api_key_location", given.get("api_key_location"))
    if kind in SERVERS:
        url = url or (HYPERBOLIC if kind == "hyperbolic" else None)
        if not url:
            made.note(f"{where}.api_base", "say the address of this server")
            return None
        name = "hyperbolic" if kind == "hyperbolic" else host_name(url)
        return Place(name, (SERVERS[kind],) if keys is None else keys, str(url).rstrip("/"))
    if kind == "azure" and isinstance(given.get("endpoint"), str):
        return azure(given["endpoint"], ("AZURE_API_KEY",) if keys is None else keys)
    if kind in LIBRARY:
        service, names = LIBRARY[kind]
        options = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
        return library(service, options, keys or (), None)
    if kind not in TYPES:
        made.note(f"{where}.type", f"{kind}: no provider that is known here, nor OpenAI's API at an address")
        return None
    name, usual = TYPES[kind]
    if url:
        api = KINDS.get(name, "compatible")
        own = host_name(url) if api == "openai" and "openai.com" not in str(url) else name
        return Place(own, keys or (), str(url).rstrip("/"), "compatible" if own != name else api)
    return Place(name, usual if keys is None else keys)


def _keys(made: Draft, where: str, given: Any) -> tuple[str, ...] | None:
    """Return the variables with the keys; None where it is not said."""
    if isinstance(given, dict):
        made.note(where, "only the first place of the key is taken")
        given = given.get("default")
    if given is None:
        return None
    if isinstance(given, str) and given.startswith("env::"):
        return (given.removeprefix("env::"),)
    if given != "none":
        made.note(where, f"{given}: keys of providers come from environment variables here")
    return ()


def _prices(made: Draft, where: str, name: str, costs: Any) -> None:
    found: dict[str, float] = {}
    for cost in (made.table(where, each) for each in made.array(where, costs)):
        pointer = str(cost.get("pointer") or cost.get("pointer_nonstreaming"))
        rate = cost.get("cost_per_million")
        if pointer in POINTERS and isinstance(rate, int | float) and rate >= 0:
            found[POINTERS[pointer]] = float(rate)
        else:
            made.note(where, f"the price at {pointer} is not taken; see [prices.models] for what there is")
    if found:
        made.prices.setdefault(name, found)


# Functions


def _function(made: Draft, name: str, function: Mapping[str, Any], chains: Mapping[str, list[str]]) -> None:
    where = f"functions.{name}"
    variants = made.table(f"{where}.variants", function.get("variants"))
    reach = {each: _variant(made, f"{where}.variants.{each}", variants[each], chains) for each in variants}
    weights, later = _weights(made, where, function, variants)
    group = Group()
    rest: list[str] = []
    for variant, weight in weights.items():
        chain = reach.get(variant) or []
        if chain:
            group.add(chain[0], weight)
            rest += chain[1:]
    for variant in later:
        rest += reach.get(variant) or []
    if not group.targets and rest:
        group.add(rest.pop(0))
    group.fall_back_to(rest)
    retries = [_within(variants[each], "retries", "num_retries") for each in variants]
    counts = [int(each) for each in retries if isinstance(each, int) and each >= 0]
    if counts:
        group.settings["retries"] = max(counts)
    made.groups[f"{FUNCTION}{name}"] = group
    why = "prompts, schemas and tools are said by the client, or by a workflow: doorstep init"
    made.note_rest(where, function, ("type", "variants", "experimentation"), why)


def _variant(made: Draft, where: str, variant: Any, chains: Mapping[str, list[str]]) -> list[str]:
    """Return what can answer for a variant."""
    kind = variant.get("type") if isinstance(variant, dict) else None
    if kind != "chat_completion":
        made.note(where, f"{kind}: only variants of the type chat_completion are one model's answer")
        return []
    rest = [each for each in variant if each not in ("type", "model", "weight", "retries")]
    if rest:
        made.note(where, f"is said by the client, or by a workflow: {', '.join(rest)}")
    if _within(variant, "retries", "max_delay_s") is not None:
        made.note(f"{where}.retries.max_delay_s", "how long retries wait is the same for all: [traffic] backoff_most_s")
    model = str(variant.get("model"))
    if model in chains:
        return chains[model]
    kind, separator, own = model.partition("::")
    place = _place(made, f"{where}.model", kind, {}) if separator else None
    if place is None:
        made.note(f"{where}.model", f"there is no model {model}")
        return []
    return [f"{made.provider(place)}/{own}"]


def _weights(
    made: Draft, where: str, function: Mapping[str, Any], variants: Mapping[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """Return the variants that share the calls, with their weights, and those after them."""
    chosen = function.get("experimentation")
    if isinstance(chosen, dict):
        if chosen.get("type") not in ("static", "static_weights", "uniform"):
            made.note(
                f"{where}.experimentation", f"{chosen.get('type')}: shares are fixed here; doorstep promote moves them"
            )
        named, later = chosen.get("candidate_variants") or list(variants), listing(chosen.get("fallback_variants"))
        shares = named if isinstance(named, dict) else {str(each): 1.0 for each in listing(named)}
        usable = {each: float(share) for each, share in shares.items() if isinstance(share, int | float) and share > 0}
        return usable, [str(each) for each in later]
    weights = {each: _within(variant, "weight") for each, variant in variants.items()}
    shared = {each: float(weight) for each, weight in weights.items() if isinstance(weight, int | float) and weight > 0}
    if not shared:
        return dict.fromkeys(variants, 1.0), []
    return shared, [each for each in variants if each not in shared]


def _within(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value

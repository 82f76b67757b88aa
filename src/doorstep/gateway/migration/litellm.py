"""LiteLLM's ``config.yaml`` as settings of our own. Keys are taken over as the names of their variables only."""

from collections.abc import Mapping
from typing import Any

from doorstep.errors import BadInput
from doorstep.gateway.migration.files import listing
from doorstep.gateway.migration.litellm_places import OPTIONS, place_of
from doorstep.gateway.migration.settings import Draft, Group

RATES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
}
UNITS = {"input_cost_per_second": "seconds", "output_cost_per_image": "images", "input_cost_per_request": "requests"}
COUNTS = ("rpm", "tpm")
NO_PLACE = "there is no such setting here"
SECTIONS = ("model_list", "router_settings", "litellm_settings", "general_settings", "environment_variables")


def draft(config: Any) -> Draft:
    """Return the settings and the notes that a configuration comes to."""
    if not isinstance(config, dict):
        raise BadInput("config", "it is no mapping with model_list in it")
    made = Draft()
    router, library = (made.table(name, config.get(name)) for name in ("router_settings", "litellm_settings"))
    _models(made, config.get("model_list"), _seconds(router.get("timeout") or library.get("request_timeout")))
    _aliases(made, router)
    _fallbacks(made, library, router)
    _traffic(made, router, library)
    _cache(made, library)
    _rest(made, router, library)
    _general(made, config)
    return made


# model_list


def _models(made: Draft, listed: Any, total_s: float | None) -> None:
    if not isinstance(listed, list):
        raise BadInput("model_list", "there is none, or it is no list")
    deployments: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for place, entry in enumerate(listed):
        where = f"model_list[{place}]"
        name, given = (
            (entry.get("model_name"), entry.get("litellm_params")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(given, dict) or not isinstance(given.get("model"), str):
            made.note(where, "it has no model_name, or no litellm_params.model")
            continue
        model = _deployment(made, where, name, given, total_s)
        if model is not None:
            deployments.setdefault(name, []).append((place, model, given))
        made.note_rest(where, entry, ("model_name", "litellm_params", "model_info"), NO_PLACE)
        about = made.table(f"{where}.model_info", entry.get("model_info"))
        _prices(made, where, model, {**about, **given})
        rest = [each for each in about if each not in RATES | UNITS]
        if rest:
            made.note(f"{where}.model_info", f"only informs, and is left out: {', '.join(rest)}")
    for name, found in deployments.items():
        made.groups[name] = _group(made, name, found)


def _deployment(made: Draft, where: str, name: str, given: dict[str, Any], total_s: float | None) -> str | None:
    """Return the model as we call it, or note why it cannot be reached."""
    taken: tuple[str, ...] = (
        "model",
        "api_key",
        "api_base",
        "base_url",
        "weight",
        "order",
        "timeout",
        "stream_timeout",
        *COUNTS,
    )
    taken += ("num_retries", "max_retries", *RATES, *UNITS, *OPTIONS)
    made.note_rest(f"{where}.litellm_params", given, taken, "the client's request has to say it")
    found = place_of(made, where, given)
    if found is None:
        return None
    place, model = found
    provider = made.provider(place, _seconds(given.get("timeout")) or total_s)
    if "*" in model + name:
        if (name, model) != (f"{provider}/*", "*"):
            why = f"there are no patterns here; each model of this provider is called {provider}/MODEL without an entry"
            made.note(f"{where}.model_name", why)
        return None
    return f"{provider}/{model}"


def _group(made: Draft, name: str, found: list[tuple[int, str, dict[str, Any]]]) -> Group:
    """Return what answers for a name: the deployments of the lowest order by weight, the others after them."""
    group = Group()
    orders = {place: _number(given.get("order")) or 0.0 for place, _, given in found}
    count = next((each for each in COUNTS if all(_number(given.get(each)) for _, _, given in found)), None)
    by = "weight" if any(given.get("weight") for _, _, given in found) else count
    for place, model, given in found:
        where = f"model_list[{place}].litellm_params"
        for each in COUNTS:
            if given.get(each):
                use = ", and counts as its weight" if each == by and len(found) > 1 else ""
                made.note(f"{where}.{each}", f"limits belong to keys and workflows here, not to a deployment{use}")
        if orders[place] == min(orders.values()):
            group.add(model, _number(given.get(by)) or 1.0 if by else 1.0)
    later = sorted((one for one in found if orders[one[0]] > min(orders.values())), key=lambda one: orders[one[0]])
    group.fall_back_to([model for _, model, _ in later])
    retries = [_number(given.get("num_retries", given.get("max_retries"))) for _, _, given in found]
    waits = [_seconds(given.get("stream_timeout")) for _, _, given in found]
    if any(each is not None for each in retries):
        group.settings["retries"] = int(max(each or 0 for each in retries))
    if any(waits):
        group.settings["first_chunk_s"] = max(each or 0 for each in waits)
    if len({*retries}) > 1 or len({*waits}) > 1:
        made.note(name, "its deployments differ in retries or timeouts; the largest counts for all")
    return group


def _prices(made: Draft, where: str, model: str | None, given: Mapping[str, Any]) -> None:
    rates = {ours: (given[name], 1e6) for name, ours in RATES.items() if given.get(name) is not None}
    rates |= {ours: (given[name], 1.0) for name, ours in UNITS.items() if given.get(name) is not None}
    if model is None or not rates:
        return
    prices = {ours: _number(cost) for ours, (cost, _) in rates.items()}
    found = {ours: round(price * rates[ours][1], 9) for ours, price in prices.items() if price is not None}
    if made.prices.setdefault(model, found) != found:
        made.note(where, f"another price of {model}; the first counts")


# The other sections


def _aliases(made: Draft, router: Mapping[str, Any]) -> None:
    aliases = made.table("router_settings.model_group_alias", router.get("model_group_alias"))
    for alias, given in aliases.items():
        name = str(given.get("model") if isinstance(given, dict) else given)
        if name in made.groups:
            made.groups[alias] = made.groups[name]
        else:
            made.note(f"router_settings.model_group_alias.{alias}", f"there is no {name}")


def _fallbacks(made: Draft, *sections: Mapping[str, Any]) -> None:
    """Add what follows a name's own models; LiteLLM lets one say it in either section."""
    chains: dict[str, list[str]] = {}
    for entry in [each for section in sections for each in made.array("fallbacks", section.get("fallbacks"))]:
        for name, others in made.table("fallbacks", entry).items():
            chains.setdefault(name, []).extend(map(str, others if isinstance(others, list) else [others]))
    default = [
        str(each) for section in sections for each in made.array("default_fallbacks", section.get("default_fallbacks"))
    ]
    everyone = chains.pop("*", [])
    first = {name: list(group.targets) for name, group in made.groups.items()}
    for name in {**dict.fromkeys(made.groups), **chains}:
        if name not in made.groups:
            made.note(f"fallbacks.{name}", "there is no such model")
            continue
        models: list[str] = []
        for other in [*chains.get(name, []), *everyone, *default]:
            if other != name and other in first:
                models += first[other]
            elif other != name:
                made.note(f"fallbacks.{name}", f"there is no {other}")
        made.groups[name].fall_back_to(models)


def _traffic(made: Draft, router: Mapping[str, Any], library: Mapping[str, Any]) -> None:
    retries = _number(router.get("num_retries", library.get("num_retries")))
    if retries is not None:
        made.sections["traffic"] = {"retries": int(retries)}


def _cache(made: Draft, library: Mapping[str, Any]) -> None:
    given = made.table("litellm_settings.cache_params", library.get("cache_params"))
    if not library.get("cache"):
        return
    if "semantic" in str(given.get("type")):
        made.note(
            "litellm_settings.cache_params.type",
            "only exactly equal requests are answered from the cache here; it is left off",
        )
        return
    ttl_s = _seconds(given.get("ttl"))
    if ttl_s:
        made.sections["cache"] = {"ttl_s": ttl_s}
    for group in made.groups.values():
        group.settings["cache"] = "all"
    rest = [name for name in given if name not in ("ttl", "type")]
    if rest or given.get("type") not in (None, "local"):
        made.note(
            "litellm_settings.cache_params",
            f"the cache is in the server's own memory; not taken: {', '.join(rest) or 'type'}",
        )


def _rest(made: Draft, router: Mapping[str, Any], library: Mapping[str, Any]) -> None:
    taken = ("num_retries", "timeout", "model_group_alias", "fallbacks", "default_fallbacks")
    strategy = router.get("routing_strategy")
    if strategy not in (None, "simple-shuffle"):
        made.note("router_settings.routing_strategy", f"{strategy}: targets share calls by weight here")
    made.note_rest("router_settings", router, (*taken, "routing_strategy"), NO_PLACE)
    for name in ("context_window_fallbacks", "content_policy_fallbacks"):
        if library.get(name):
            made.note(
                f"litellm_settings.{name}",
                "a target's refusal of a request is the client's answer here, no reason for another",
            )
    budget = _number(library.get("max_budget"))
    if budget is not None:
        option = "--usd-per-day" if str(library.get("budget_duration")) in ("1d", "24h") else "--usd-per-month"
        made.note("litellm_settings.max_budget", f"budgets belong to keys: doorstep keys create {option} {budget:g}")
    keys = library.get("default_key_generate_params")
    if isinstance(keys, dict):
        made.note("litellm_settings.default_key_generate_params", f"say it when a key is made: {_key_command(keys)}")
    callbacks = ("callbacks", "success_callback", "failure_callback", "service_callback")
    for name in callbacks:
        if library.get(name):
            made.note(f"litellm_settings.{name}", "calls are recorded here; to send them elsewhere use OpenTelemetry")
    done: tuple[str, ...] = (
        "request_timeout",
        "cache",
        "cache_params",
        "context_window_fallbacks",
        "content_policy_fallbacks",
        "max_budget",
    )
    done += ("budget_duration", "default_key_generate_params", *callbacks)
    made.note_rest("litellm_settings", library, (*taken, *done), NO_PLACE)


def _key_command(given: Mapping[str, Any]) -> str:
    options = {
        "max_budget": "--usd-per-month",
        "rpm_limit": "--requests-per-minute",
        "tpm_limit": "--tokens-per-minute",
    }
    words = [f"{option} {given[name]}" for name, option in options.items() if given.get(name) is not None]
    words += [f"--model '{model}'" for model in listing(given.get("models"))]
    return " ".join(["doorstep keys create", *words])


def _general(made: Draft, config: Mapping[str, Any]) -> None:
    general = made.table("general_settings", config.get("general_settings"))
    if general.get("master_key"):
        made.note("general_settings.master_key", "make one: doorstep keys create --role admin")
    for name in ("database_url", "store_model_in_db"):
        if general.get(name):
            made.note(
                f"general_settings.{name}", "the record needs no database of its own; for PostgreSQL set [store] url"
            )
    made.note_rest("general_settings", general, ("master_key", "database_url", "store_model_in_db"), NO_PLACE)
    for name in made.table("environment_variables", config.get("environment_variables")):
        made.note(f"environment_variables.{name}", "set it in the environment of the server; settings hold no secrets")
    made.note_rest("config", config, SECTIONS, NO_PLACE)


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and 0 <= number < 1e15 else None


def _seconds(value: Any) -> float | None:
    return _number(value) or None

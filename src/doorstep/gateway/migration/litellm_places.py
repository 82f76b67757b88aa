"""Where the models of LiteLLM's deployments are, as providers of our own."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from doorstep.config import KNOWN_PROVIDERS, ProviderKind
from doorstep.gateway.migration.settings import Draft, Place, azure, host_name, library

ENVIRONMENT = "os.environ/"
PREFIXES = {  # as LiteLLM calls them, and we
    "openai": "openai", "anthropic": "anthropic", "gemini": "google", "deepseek": "deepseek", "groq": "groq",
    "mistral": "mistral", "together_ai": "together", "fireworks_ai": "fireworks", "xai": "xai",
    "openrouter": "openrouter", "zai": "zai",
}  # fmt: skip
KINDS: dict[str, ProviderKind] = {"openai": "openai", "anthropic": "anthropic", "google": "google"}
SERVICES = {  # others with OpenAI's API: their addresses and keys
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "dashscope": ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    "deepinfra": ("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "moonshot": ("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "nvidia_nim": ("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "sambanova": ("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
}
LOCAL = {  # servers with OpenAI's API, and where they are unless it is said
    "hosted_vllm": None, "vllm": None, "lm_studio": None, "litellm_proxy": None, "custom_openai": None,
    "ollama": "http://localhost:11434", "ollama_chat": "http://localhost:11434",
}  # fmt: skip
LIBRARY = {  # those with an API of their own, as any-llm calls them and what it takes for them
    "bedrock": ("bedrock", {"aws_region_name": "region_name"}),
    "vertex_ai": ("vertexai", {"vertex_project": "project", "vertex_location": "location"}),
    "cohere": ("cohere", {}),
    "cohere_chat": ("cohere", {}),
    "watsonx": ("watsonx", {"project_id": "project_id"}),
}  # fmt: skip
OPTIONS = ("aws_region_name", "vertex_project", "vertex_location", "project_id", "api_version")
BARE = ((r"gpt-|o[1-9]|chatgpt|text-embedding-|dall-e|whisper|tts-", "openai"), (r"claude-", "anthropic"))
UNKNOWN = "no provider that is known here, nor OpenAI's API at an address"


def place_of(made: Draft, where: str, given: Mapping[str, Any]) -> tuple[Place, str] | None:
    """Return where a deployment is and what its model is called there, or note why it cannot be reached."""
    where = f"{where}.litellm_params"
    prefix, _, model = given["model"].partition("/")
    if not model and "/" in given["model"]:
        made.note(f"{where}.model", f"{given['model']}: it names no model")
        return None
    if not model:
        prefix, model = next((known for form, known in BARE if re.match(form, prefix)), ""), prefix
    url = given.get("api_base") or given.get("base_url")
    if isinstance(url, str) and url.startswith(ENVIRONMENT):
        made.note(f"{where}.api_base", f"write the address that is in {url.removeprefix(ENVIRONMENT)} instead")
        return None
    place = _place(made, where, prefix, given, None if url is None else str(url))
    if place is None:
        return None
    return place, re.sub(r"^(converse|invoke|converse_like)/", "", model) if prefix == "bedrock" else model


def _place(made: Draft, where: str, prefix: str, given: Mapping[str, Any], url: str | None) -> Place | None:
    keys = tuple(_key_names(made, where, given))
    if prefix == "azure" and url is not None:
        if given.get("api_version"):
            made.note(f"{where}.api_version", "Azure's address /openai/v1 takes none; the deployment stays the model")
        return azure(url, keys or ("AZURE_API_KEY",))
    if prefix in LIBRARY and not (prefix == "vertex_ai" and "claude" in given["model"]):
        name, options = LIBRARY[prefix]
        said = {ours: given[theirs] for theirs, ours in options.items() if given.get(theirs) is not None}
        for ours in [ours for ours, value in said.items() if str(value).startswith(ENVIRONMENT)]:
            made.note(where, f"write the {ours} that is in {said.pop(ours).removeprefix(ENVIRONMENT)} into its options")
        return library(name, said, keys, url)
    if prefix in SERVICES:
        known, key = SERVICES[prefix]
        return Place(prefix, keys or (key,), url or known)
    if prefix in PREFIXES:
        return _known(made, where, PREFIXES[prefix], keys, url, has_key=bool(given.get("api_key")))
    if prefix in LOCAL and (url or LOCAL[prefix]):
        address = url or str(LOCAL[prefix])
        return Place(host_name(address), keys, _versioned(address))
    said_of = ("api_base", "say the address of this server") if prefix in (*LOCAL, "azure") else ("model", UNKNOWN)
    made.note(f"{where}.{said_of[0]}", f"{given['model']}: {said_of[1]}")
    return None


def _known(made: Draft, where: str, name: str, keys: tuple[str, ...], url: str | None, *, has_key: bool) -> Place:
    """Return a provider that is known, at its address or another."""
    if url is None or _versioned(url) == KNOWN_PROVIDERS[name].base_url:
        return Place(name, keys)
    if not keys and not has_key:
        known = " or ".join(KNOWN_PROVIDERS[name].key_names)
        made.note(f"{where}.api_key", f"none is said; if {known} is meant for {url}, name it in key_env")
    if name == "openai" and "openai.com" not in url:
        return Place(host_name(url), keys, _versioned(url))
    return Place(name, keys, _versioned(url), KINDS.get(name, "compatible"))


def _key_names(made: Draft, where: str, given: Mapping[str, Any]) -> Iterator[str]:
    key = given.get("api_key")
    if isinstance(key, str) and key.startswith(ENVIRONMENT):
        yield key.removeprefix(ENVIRONMENT)
    elif key not in (None, "", "none", "None", "EMPTY"):
        why = "the key stands in the file: put it into an environment variable, and name that in key_env"
        made.note(f"{where}.api_key", why)


def _versioned(url: str) -> str:
    """Return an address with the version in it, which LiteLLM lets one leave out."""
    url = url.rstrip("/")
    return url if re.search(r"/v\d+\w*(/|$)", url) else f"{url}/v1"

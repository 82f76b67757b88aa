"""A ``doorstep.toml`` in the making, and notes of what in the other program's settings has no place in it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from doorstep.config import KNOWN_PROVIDERS, ProviderKind
from doorstep.gateway.migration.files import listing, mapping


class Note(msgspec.Struct, frozen=True):
    """Something that was not taken over as it was: where it stood, and what to do about it."""

    where: str
    why: str


class Place(msgspec.Struct, frozen=True):
    """Where models are served. ``base_url`` None: at the address that is known of ``name``."""

    name: str  # which it gets unless another place has it
    key_names: tuple[str, ...] = ()  # environment variables; none: those that are known, or no key
    base_url: str | None = None
    kind: ProviderKind = "compatible"
    options: dict[str, Any] = {}  # for any-llm


class Group(msgspec.Struct):
    """Models that share a name: targets with their weights, then those to fall back to."""

    targets: dict[str, float] = {}
    fallback: list[str] = []
    settings: dict[str, Any] = {}

    def add(self, model: str, weight: float = 1.0) -> None:
        """Add a target; what comes twice weighs twice."""
        self.targets[model] = self.targets.get(model, 0.0) + weight

    def fall_back_to(self, models: Sequence[str]) -> None:
        """Add what is tried when the targets fail, once each."""
        self.fallback += [model for model in dict.fromkeys(models) if model not in {*self.fallback, *self.targets}]


class Draft:
    """Settings that are being gathered."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.prices: dict[str, dict[str, float]] = {}
        self.sections: dict[str, dict[str, Any]] = {}  # those without names of their own, such as ``traffic``
        self.notes: list[Note] = []
        self._places: dict[str, Place] = {}
        self._total_s: dict[str, float] = {}

    def note(self, where: str, why: str) -> None:
        """Note what was not taken over."""
        self.notes.append(Note(where, why))

    def note_rest(self, where: str, values: Mapping[str, Any], taken: Sequence[str], why: str) -> None:
        """Note every setting that is not among those that were taken over."""
        for name in values:
            if name not in taken:
                self.note(f"{where}.{name}", why)

    def table(self, where: str, value: Any) -> dict[str, Any]:
        """Return a value that is to be a mapping; of another kind it is noted and has nothing in it."""
        if not isinstance(value, dict) and value is not None:
            self.note(where, "it is no mapping")
        return mapping(value)

    def array(self, where: str, value: Any) -> list[Any]:
        """Return a value that is to be a list, as ``table`` does."""
        if not isinstance(value, list) and value is not None:
            self.note(where, "it is no list")
        return listing(value)

    def provider(self, place: Place, total_s: float | None = None) -> str:
        """Return the name of a place; the same place has one name. ``total_s`` is how long an answer may take there."""
        base = KNOWN_PROVIDERS.get(place.name)
        if base and not place.base_url and base.key_names == [*place.key_names]:
            place = Place(place.name)
        names = [name for name, known in self._places.items() if known == place]
        name = names[0] if names else self._free_name(place.name)
        self._places[name] = place
        if total_s:
            self._total_s[name] = max(total_s, self._total_s.get(name, 0.0))
        return name

    def note_unanswered(self) -> None:
        """Note the names that nothing is left for."""
        for name, group in self.groups.items():
            if not group.targets:
                self.note(name, "nothing is left that could answer for it")

    def toml(self) -> str:
        """Return the settings as text."""
        return "\n".join(self._lines()) + "\n"

    def _free_name(self, wanted: str) -> str:
        numbered = (f"{wanted}-{number}" for number in range(2, len(self._places) + 3))
        return next(name for name in (wanted, *numbered) if name not in self._places)

    def _lines(self) -> Iterator[str]:
        for name, values in self.sections.items():
            yield from _section([name], values)
        for name, place in self._places.items():
            values = _provider(name, place)
            if name in self._total_s:
                values["total_s"] = float(self._total_s[name])
            if values:
                yield from _section(["providers", name], values)
        for name, group in self.groups.items():
            if group.targets and not _is_itself(name, group):
                yield from _section(["models", name], _model(group))
        for name, rates in self.prices.items():
            yield from _section(["prices", "models", name], rates)


def host_name(url: Any) -> str:
    """Return a short name for a server: its host's first word, or the port of one on this machine."""
    parts = urlsplit(str(url))
    host = parts.hostname or "server"
    if host in ("localhost", "127.0.0.1", "0.0.0.0", "::1", "host.docker.internal"):
        return f"local-{parts.port}" if parts.port else "local"
    words = [word for word in host.split(".") if word not in ("api", "www")]
    return host.replace(".", "-") if host.replace(".", "").isdigit() else words[0]


def azure(endpoint: str, key_names: tuple[str, ...]) -> Place:
    """Return a resource of Azure OpenAI: it has OpenAI's API at an address of its own."""
    root = re.sub(r"/openai(/.*)?$", "", endpoint.rstrip("/"))
    return Place("azure", key_names, f"{root}/openai/v1", "openai")


def library(provider: str, options: Mapping[str, Any], key_names: tuple[str, ...], url: str | None) -> Place:
    """Return a service with an API of its own, which any-llm speaks to."""
    name = "vertex" if provider == "vertexai" else provider  # as the price list calls it
    return Place(name, key_names, url, "any-llm", {"provider": provider, **options})


def _provider(name: str, place: Place) -> dict[str, Any]:
    """Return what has to be said of a provider: nothing that is known of one with this name."""
    known = KNOWN_PROVIDERS.get(name)
    base = KNOWN_PROVIDERS.get(place.name)
    url = place.base_url or (base.base_url if base else "")
    kind = place.kind if place.base_url or base is None else base.kind
    keys = list(place.key_names) or (base.key_names if base and not place.base_url else [])
    said: dict[str, Any] = {}
    if kind == "any-llm":
        said = {**({"base_url": url} if url else {}), "kind": kind, "options": place.options}
    elif known is None or known.base_url != url:
        said = {"base_url": url} if kind == "compatible" else {"base_url": url, "kind": kind}
    if keys and (said or known is None or known.key_names != keys):
        said["key_env"] = keys[0] if len(keys) == 1 else keys
    return said


def _is_itself(name: str, group: Group) -> bool:
    """Tell whether a name needs no saying, since it is what its one model is called anyway."""
    return [*group.targets] == [name] and not group.fallback and not group.settings


def _model(group: Group) -> dict[str, Any]:
    weights = set(group.targets.values())
    targets: list[Any] = list(group.targets)
    if len(weights) > 1:
        targets = [{"model": model, "weight": weight} for model, weight in group.targets.items()]
    return {"targets": targets, **({"fallback": group.fallback} if group.fallback else {}), **group.settings}


def _section(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{'.'.join(map(_key, names))}]"
    for name, value in values.items():
        yield f"{_key(name)} = {_value(value)}"
    yield ""


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return f"{value:.12f}".rstrip("0") + ("0" if value == int(value) else "")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's strings are otherwise JSON's

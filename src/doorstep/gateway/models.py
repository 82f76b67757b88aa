"""Names of models: who may answer for a name, and in what order.

- an alias of ``[models.NAME]`` in the settings, which may also be a name of those below;
- the local base by its name, such as ``tiny``;
- a checkpoint by its ``tinker://…`` path, on the local base;
- ``workflow/NAME``: the model that has the workflow's traffic now;
- ``PROVIDER/MODEL`` for a configured provider.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from doorstep.config import ModelSettings, Share, TrafficSettings
from doorstep.errors import NotFound, UsageError
from doorstep.gateway.providers.base import Provider

CHECKPOINT = "tinker://"
WORKFLOW = "workflow/"
NAME_LENGTH = 300  # at most: what fails is remembered by its name


class Routes(Protocol):
    """Which model has a workflow's traffic, and by which decision."""

    def model_for(self, workflow: str) -> tuple[str, str | None] | None: ...  # noqa: D102


class Target(msgspec.Struct, frozen=True):
    """One who can answer. ``model`` is the provider's own name; ``adapter`` the tinker:// path on our base."""

    provider: Provider
    model: str
    adapter: str | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to answer for a name. ``targets`` share the calls by their ``weights``; ``fallback`` comes after them."""

    targets: tuple[Target, ...]
    weights: tuple[float, ...] = (1.0,)
    fallback: tuple[Target, ...] = ()
    policy: TrafficSettings
    alias: ModelSettings | None = None  # by which the name stands for these


class Models:
    """All names that this gateway serves. ``local`` answers for the base under each of ``local_names``, or is None."""

    def __init__(
        self,
        local: Provider | None,
        local_names: tuple[str, ...],
        providers: Mapping[str, Provider],
        routes: Routes,
        aliases: Mapping[str, ModelSettings] | None = None,
        traffic: TrafficSettings | None = None,
    ) -> None:
        self._local = local
        self._local_names = local_names
        self._providers = providers
        self._routes = routes
        self._aliases = aliases or {}
        self._traffic = traffic or TrafficSettings()
        self._policies = {name: alias.policy(self._traffic) for name, alias in self._aliases.items()}
        for name, alias in self._aliases.items():
            self._check(name, alias)

    def resolve(self, name: str) -> Plan:
        """Return who is to answer for a name; ``NotFound`` says what there is."""
        if len(name) > NAME_LENGTH:
            raise NotFound(f"there is no model with a name of {len(name)} characters. {self._what_there_is()}")
        if name.startswith(WORKFLOW) and name not in self._aliases:
            name = self._routed(name)
        alias = self._aliases.get(name)
        if alias is None:
            return Plan(targets=(self._target(name),), policy=self._traffic)
        shares = _shares(alias)
        return Plan(
            targets=tuple(self._target(share.model) for share in shares),
            weights=tuple(share.weight for share in shares),
            fallback=tuple(self._target(model) for model in alias.fallback),
            policy=self._policies[name],
            alias=alias,
        )

    def listing(self) -> list[dict[str, Any]]:
        """Return the models that have a name in the settings, for OpenAI's and Anthropic's clients alike."""
        named = [*self._aliases, *(self._local_names[:1] if self._local else ())]
        for alias in self._aliases.values():
            named += [*(share.model for share in _shares(alias)), *alias.fallback]
        return [self._entry(name) for name in dict.fromkeys(named)]

    def one(self, name: str) -> dict[str, Any]:
        """Return the entry of any model that is served; ``NotFound`` says what there is."""
        self.resolve(name)
        return self._entry(name)

    async def close(self) -> None:
        """Let go of the providers."""
        for provider in (self._local, *self._providers.values()):
            if provider is not None:
                await provider.close()

    def _target(self, name: str) -> Target:
        if name.startswith(WORKFLOW):
            name = self._routed(name)
        if self._local and name in self._local_names:
            return Target(self._local, self._local_names[0])
        if self._local and name.startswith(CHECKPOINT):
            return Target(self._local, self._local_names[0], adapter=name)
        provider, slash, model = name.partition("/")
        if slash and model and provider in self._providers:
            return Target(self._providers[provider], model)
        raise NotFound(f"there is no model '{name}'. {self._what_there_is()}")

    def _routed(self, name: str) -> str:
        """Return the model that has a workflow's traffic."""
        route = self._routes.model_for(name.removeprefix(WORKFLOW))
        if route is None:
            raise NotFound(f"'{name}' has no route yet; doorstep promote makes one. {self._what_there_is()}")
        return route[0]

    def _check(self, name: str, alias: ModelSettings) -> None:
        """Refuse an alias that could never answer; a workflow may get its route later."""
        for model in (*(share.model for share in _shares(alias)), *alias.fallback):
            if not model.startswith(WORKFLOW):
                try:
                    self._target(model)
                except NotFound as error:
                    raise UsageError(f"[models.{name}] cannot work: {error}") from None

    def _entry(self, name: str) -> dict[str, Any]:
        owner = name.partition("/")[0]
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": owner if name not in self._aliases and owner in self._providers else "doorstep",
            "type": "model",
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
        }

    def _what_there_is(self) -> str:
        local = [self._local_names[0], f"{CHECKPOINT}… (a checkpoint)"] if self._local else []
        hosted = [f"{name}/MODEL" for name in self._providers]
        names = [*self._aliases, *local, *hosted, f"{WORKFLOW}NAME (the model with its traffic)"]
        return f"There is: {', '.join(names)}."


def _shares(alias: ModelSettings) -> list[Share]:
    return [Share(model=target) if isinstance(target, str) else target for target in alias.targets]

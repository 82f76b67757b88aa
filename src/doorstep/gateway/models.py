"""Names of models: which provider answers for a name.

- the local base by its name, such as ``tiny``;
- a checkpoint by its ``tinker://…`` path, on the local base;
- ``workflow/NAME``: the model that has the workflow's traffic now;
- ``PROVIDER/MODEL`` for a configured provider.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from doorstep.errors import NotFound
from doorstep.gateway.providers.base import Provider

CHECKPOINT = "tinker://"
WORKFLOW = "workflow/"


class Routes(Protocol):
    """Which model has a workflow's traffic, and by which decision."""

    def model_for(self, workflow: str) -> tuple[str, str | None] | None: ...  # noqa: D102


class Target(msgspec.Struct, frozen=True):
    """Who answers for a name. ``model`` is the provider's own name; ``adapter`` the tinker:// path on our base."""

    provider: Provider
    model: str
    adapter: str | None = None


class Models:
    """All names that this gateway serves. ``local`` answers for the base under each of ``local_names``, or is None."""

    def __init__(
        self, local: Provider | None, local_names: tuple[str, ...], providers: Mapping[str, Provider], routes: Routes
    ) -> None:
        self._local = local
        self._local_names = local_names
        self._providers = providers
        self._routes = routes

    def resolve(self, name: str) -> Target:
        """Return who answers for a name; ``NotFound`` says what there is."""
        if name.startswith(WORKFLOW):
            route = self._routes.model_for(name.removeprefix(WORKFLOW))
            if route is None:
                raise NotFound(f"'{name}' has no route yet; doorstep promote makes one. {self._what_there_is()}")
            name = route[0]
        if self._local and name in self._local_names:
            return Target(self._local, self._local_names[0])
        if self._local and name.startswith(CHECKPOINT):
            return Target(self._local, self._local_names[0], adapter=name)
        provider, slash, model = name.partition("/")
        if slash and model and provider in self._providers:
            return Target(self._providers[provider], model)
        raise NotFound(f"there is no model '{name}'. {self._what_there_is()}")

    def listing(self) -> list[dict[str, Any]]:
        """Return the models that have a name of their own, as OpenAI lists them."""
        names = self._local_names[:1] if self._local else ()
        return [{"id": name, "object": "model", "created": 0, "owned_by": "doorstep"} for name in names]

    async def close(self) -> None:
        """Let go of the providers."""
        for provider in (self._local, *self._providers.values()):
            if provider is not None:
                await provider.close()

    def _what_there_is(self) -> str:
        local = [self._local_names[0], f"{CHECKPOINT}… (a checkpoint)"] if self._local else []
        hosted = [f"{name}/MODEL" for name in self._providers]
        return f"There is: {', '.join([*local, *hosted, f'{WORKFLOW}NAME (the model with its traffic)'])}."

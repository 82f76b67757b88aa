"""Video jobs on this gateway: which driver a configured provider gets, and the gateway as jobs need it."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from doorstep.config import ProviderSettings
from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.gateway import Gateway
from doorstep.gateway.keys import Caller
from doorstep.gateway.limits import Reservation
from doorstep.gateway.media.compatible import CompatibleVideos
from doorstep.gateway.media.drivers import VideoDriver
from doorstep.gateway.media.fake import FakeVideos
from doorstep.gateway.media.openrouter import OpenRouterVideos
from doorstep.gateway.media.upstream import Upstream
from doorstep.gateway.media.veo import VeoVideos
from doorstep.gateway.providers.fake import SCHEME
from doorstep.http_client import Client

OPENROUTER = "openrouter.ai"


def drivers(
    providers: Mapping[str, ProviderSettings], client: Client, environment: Mapping[str, str] = os.environ
) -> dict[str, VideoDriver]:
    """Return a driver for each provider that may make videos, by its name."""
    found = {name: _driver(name, settings, client, environment) for name, settings in providers.items()}
    return {name: driver for name, driver in found.items() if driver is not None}


class GatewayDesk:
    """Names, limits and the record of one gateway. A job has one target: nobody else takes it over when it fails."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def admit(self, caller: Caller, name: str, head: Head, size: int) -> tuple[str, str, Reservation]:
        """Return the provider and the model behind a name, and what was reserved."""
        plan = self._gateway.models.resolve(name)
        target = plan.targets[0]
        return target.provider.name, target.model, self._gateway.admit(caller, plan, head, size)

    def keep(self, capture: Capture, reservation: Reservation | None) -> None:
        """Record a call that has ended, and settle what was reserved."""
        seconds = (capture.ended_us - capture.started_us) / 1e6
        self._gateway.metrics.count(capture.dialect, capture.provider, capture.served_model, capture.status, seconds)
        self._gateway.keep(capture, reservation)


def _driver(
    name: str, settings: ProviderSettings, client: Client, environment: Mapping[str, str]
) -> VideoDriver | None:
    if settings.base_url.startswith(SCHEME):
        return FakeVideos()
    key = next((secret for label in settings.key_names if (secret := environment.get(label, "").strip())), None)
    header = b"x-goog-api-key" if settings.kind == "google" else b"authorization"
    value = key if settings.kind == "google" else f"Bearer {key}"
    upstream = Upstream(name, client, settings.base_url, () if key is None else ((header, str(value).encode()),))
    if urlsplit(settings.base_url).hostname == OPENROUTER:
        return OpenRouterVideos(upstream)
    match settings.kind:
        case "google":
            return VeoVideos(upstream)
        case "openai" | "compatible":
            return CompatibleVideos(upstream)
        case _:
            return None

"""Our own engine as a provider: what our models are asked, sample and say, in canonical terms."""

from doorstep.gateway.providers.engine.provider import AdapterFor, EngineProvider

__all__ = ["AdapterFor", "EngineProvider"]

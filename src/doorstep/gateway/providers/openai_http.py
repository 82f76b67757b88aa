"""Any OpenAI-compatible service over HTTP: bodies and streams pass through byte for byte.

Three clocks watch an upstream: until its first byte, between bytes, and in total. What fails before the first byte is
an error for the client to read; what fails later breaks the answer off.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping

import httpx

from doorstep.config import ProviderSettings
from doorstep.errors import ProviderError
from doorstep.gateway.providers.base import Answer, Ask

_PASSED_ON = ("retry-after", "x-request-id", "openai-", "anthropic-", "x-ratelimit-")  # beginnings of header names


class OpenAIProvider:
    """One upstream by its settings. ``environment`` holds its key."""

    def __init__(self, name: str, settings: ProviderSettings, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._settings = settings
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if settings.key_env and (key := environment.get(settings.key_env)):
            headers["authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        base = settings.base_url.rstrip("/") + "/"
        self._http = httpx.AsyncClient(base_url=base, headers=headers, timeout=None, limits=limits)

    async def answer(self, ask: Ask) -> Answer:
        """Send the call on; return when the upstream has begun to answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.total_s
        body = ask.dialect.with_model(ask.body, ask.model)
        request = self._http.build_request("POST", "chat/completions", content=body)
        first = min(self._settings.first_byte_s, self._settings.total_s)
        try:
            async with asyncio.timeout(first):
                response = await self._http.send(request, stream=True)
        except TimeoutError:
            raise ProviderError(f"{self.name} did not begin to answer within {first:g} s", status=504) from None
        except httpx.HTTPError as error:
            raise ProviderError(f"{self.name} cannot be reached: {_text(error)}") from None
        return Answer(
            body=self._pieces(response, deadline),
            status=response.status_code,
            content_type=response.headers.get("content-type", "application/json"),
            headers={name: value for name, value in response.headers.items() if name.startswith(_PASSED_ON)},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _pieces(self, response: httpx.Response, deadline: float) -> AsyncGenerator[bytes]:
        loop = asyncio.get_running_loop()
        pieces = response.aiter_bytes()
        try:
            while True:
                async with asyncio.timeout_at(min(deadline, loop.time() + self._settings.idle_s)):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
        except TimeoutError:
            late = "took too long" if loop.time() >= deadline else f"was silent for {self._settings.idle_s:g} s"
            raise ProviderError(f"{self.name} {late} in the middle of its answer", status=504) from None
        except httpx.HTTPError as error:
            raise ProviderError(f"{self.name} broke off its answer: {_text(error)}") from None
        finally:
            await response.aclose()


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")

"""How a workflow reaches a model: OpenAI chat completions at a ``base_url``, nothing else.

Owns the HTTP client and the reading of the answer; knows no provider and no engine.
"""

import asyncio
from types import TracebackType
from typing import Any

import httpx
import msgspec

from doorstep.errors import BadInput, DoorstepError, ProviderError, UsageError

RETRIES = 3
BACKOFF_S = 0.5


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``logprobs`` are those of the sampled tokens, ``None`` where the model gives none."""

    text: str
    finish_reason: str | None
    model: str
    logprobs: list[float] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class ModelClient:
    """An OpenAI-compatible client bound to runs: each call is made at ``/runs/{run_id}/v1``."""

    def __init__(self, base_url: str, key: str = "doorstep", timeout_s: float = 120.0) -> None:
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout_s, limits=limits, trust_env=False
        )

    async def __aenter__(self) -> "ModelClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def complete(self, run_id: str, model: str, messages: list[dict[str, str]], **options: Any) -> Completion:
        """Ask for one answer.

        ``BadInput`` when the model refuses this conversation (too long, malformed), ``UsageError`` when it refuses
        whatever is asked (no such model, no valid key, an option it does not take), ``ProviderError`` when the model
        or the way to it failed, after retries.
        """
        body = _encode(model, {"model": model, "messages": messages, **options})
        for attempt in range(RETRIES):
            try:
                response = await self._http.post(f"/runs/{run_id}/v1/chat/completions", content=body)
            except httpx.HTTPError as error:
                failure = ProviderError(f"{type(error).__name__}: {error}")
            else:
                if response.status_code < 400:
                    return _completion(response)
                refusal = _failure(response, model)
                if not isinstance(refusal, ProviderError):
                    raise refusal
                failure = refusal
            if attempt == RETRIES - 1:
                raise failure
            await asyncio.sleep(BACKOFF_S * 2**attempt)
        raise AssertionError("the loop returns or raises")


def _encode(model: str, body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, TypeError) as error:
        raise BadInput(model, f"the messages are no text that can be sent: {error}") from None


def _completion(response: httpx.Response) -> Completion:
    try:
        body = response.json()
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        listed = (choice.get("logprobs") or {}).get("content")
        return Completion(
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason"),
            model=body.get("model", ""),
            logprobs=[token["logprob"] for token in listed] if listed else None,
            input_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ProviderError(f"The model's answer is no chat completion: {response.text[:200]}") from None


def _failure(response: httpx.Response, model: str) -> DoorstepError:
    """Say whose failure an error status is: this conversation's, the whole request's, or the provider's."""
    status = response.status_code
    message, param = _error_of(response)
    if status in (408, 409, 425, 429) or status >= 500:
        return ProviderError(f"HTTP {status}: {message}", status=status)
    if status in (400, 413, 422) and (param is None or param.startswith("messages")):
        return BadInput(model, f"HTTP {status}: {message}")
    return UsageError(f"{model} refuses every request (HTTP {status}): {message}. Mend that and run it again.")


def _error_of(response: httpx.Response) -> tuple[str, str | None]:
    """Return message and parameter of an error in OpenAI's shape, else the text as it is."""
    try:
        error = response.json()["error"]
        return str(error["message"]).rstrip("."), error.get("param")
    except (ValueError, LookupError, TypeError, AttributeError):
        return response.text[:200], None

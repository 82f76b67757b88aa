"""How a workflow reaches a model: OpenAI chat completions at a ``base_url``, nothing else.

Owns the HTTP client and the reading of the answer; knows no provider and no engine.
"""

import asyncio
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import msgspec

from doorstep.errors import BadInput, DoorstepError, ProviderError, UsageError
from doorstep.http_client import Client

TRIES = 3
BACKOFF_S = 0.5
MAX_WAIT_S = 30.0  # however long a provider asks to be left alone

# What some hosted models refuse by name, and what to send instead: reasoning models take no temperature and give no
# log-probabilities, and call the longest answer by another name.
INSTEAD: Mapping[str, str | None] = {
    "temperature": None,
    "logprobs": None,
    "max_tokens": "max_completion_tokens",
}


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``logprobs`` are those of the sampled tokens, ``None`` where the model gives none."""

    text: str
    finish_reason: str | None
    model: str
    logprobs: list[float] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class ModelClient:
    """An OpenAI-compatible client bound to runs: each call is made at ``/runs/{run_id}/v1``.

    It remembers which options a model refused, and goes on without them.
    """

    def __init__(self, base_url: str, key: str = "doorstep", timeout_s: float = 120.0) -> None:
        self._http = Client()
        self._base_url = base_url.rstrip("/")
        self._headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
        self._timeout_s = timeout_s
        self._refused: dict[str, set[str]] = {}  # options by model

    async def __aenter__(self) -> "ModelClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def complete(self, run_id: str, model: str, messages: list[dict[str, str]], **options: Any) -> Completion:
        """Ask for one answer.

        ``BadInput`` when the model refuses this conversation (too long, malformed), ``UsageError`` when it refuses
        whatever is asked (no such model, no valid key, an option it does not take), ``ProviderError`` when the model
        or the way to it failed, after retries.
        """
        failures = 0
        while True:
            sent = self._accepted(model, options)
            body = _encode(model, {"model": model, "messages": messages, **sent})
            try:
                answer = await self._post(f"{self._base_url}/runs/{run_id}/v1/chat/completions", body)
            except ProviderError as error:
                failure, wait = error, 0.0
            else:
                if answer.status < 400:
                    return _completion(answer)
                if option := _refused_option(answer, sent):
                    self._refused.setdefault(model, set()).add(option)
                    continue
                refusal = _failure(answer, model)
                if not isinstance(refusal, ProviderError):
                    raise refusal
                failure, wait = refusal, _retry_after(answer)
            failures += 1
            if failures == TRIES:
                raise failure
            await asyncio.sleep(max(BACKOFF_S * 2 ** (failures - 1), wait))

    async def _post(self, url: str, body: bytes) -> _Answer:
        wait = self._timeout_s
        response = await self._http.request(
            "POST", url, self._headers, body, first_byte_s=wait, idle_s=wait, total_s=2 * wait
        )
        return _Answer(response.status, response.headers, await response.read())

    def _accepted(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options as this model takes them, as far as is known."""
        refused = self._refused.get(model, ())
        names = {name: INSTEAD[name] if name in refused else name for name in options}
        return {taken: options[name] for name, taken in names.items() if taken}


def _encode(model: str, body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, TypeError) as error:
        raise BadInput(model, f"the messages are no text that can be sent: {error}") from None


def _completion(answer: _Answer) -> Completion:
    try:
        body = msgspec.json.decode(answer.body)
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
        raise ProviderError(f"The model's answer is no chat completion: {answer.text[:200]}") from None


def _failure(answer: _Answer, model: str) -> DoorstepError:
    """Say whose failure an error status is: this conversation's, the whole request's, or the provider's."""
    status = answer.status
    message, param = _error_of(answer)
    if status in (408, 409, 425, 429) or status >= 500:
        return ProviderError(f"HTTP {status}: {message}", status=status)
    about_the_input = param is None or param.startswith(("messages", "prompt"))
    if status in (400, 403, 413, 422) and about_the_input:  # 403: a filter of contents, as far as one can tell
        return BadInput(model, f"HTTP {status}: {message}")
    return UsageError(f"{model} refuses every request (HTTP {status}): {message}. Mend that and run it again.")


def _refused_option(answer: _Answer, sent: Mapping[str, Any]) -> str | None:
    """Return the option that a model refuses by name, if it can be done without."""
    if answer.status not in (400, 403, 422):
        return None
    message, param = _error_of(answer)
    # OpenAI's refusal of log-probabilities is a 403 that says so in its message alone.
    named = param or ("logprobs" if "logprobs" in message else None)
    return named if named in INSTEAD and named in sent else None


def _retry_after(answer: _Answer) -> float:
    """Return the seconds that a provider asks to wait, within reason; 0 where it asks nothing that can be read."""
    asked = answer.headers.get("retry-after", "")
    try:
        return min(float(asked), MAX_WAIT_S)
    except ValueError:
        pass
    try:
        return min(parsedate_to_datetime(asked).timestamp() - time.time(), MAX_WAIT_S)
    except (ValueError, OverflowError):
        return 0.0


def _error_of(answer: _Answer) -> tuple[str, str | None]:
    """Return message and parameter of an error in OpenAI's shape, else the text as it is."""
    try:
        error = msgspec.json.decode(answer.body)["error"]
        return str(error["message"]).rstrip("."), error.get("param")
    except (ValueError, LookupError, TypeError, AttributeError):
        return answer.text[:200], None

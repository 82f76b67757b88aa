"""Services with an API of their own kind, through Mozilla's ``any-llm``: Bedrock, Vertex AI, Cohere and many others.

The library speaks to each through that service's own package, and takes and gives OpenAI's chat completions. So this is
a provider that is asked in that dialect only, and every chat is translated into it. Off the fast path: the library is
imported by the first call, away from the event loop, and nothing else imports it.
"""

import asyncio
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import Any

import msgspec

from doorstep.config import ProviderSettings
from doorstep.errors import BadInput, DoorstepError, ProviderError, UsageError
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.providers.base import EVENT_STREAM, Answer, Ask, Key, Provider
from doorstep.gateway.providers.http import keys_found
from doorstep.gateway.providers.translate import Translated
from doorstep.gateway.traffic.failures import retry_after

Step = Callable[[], Coroutine[Any, Any, Any]]

LIBRARY = "any_llm"
DONE = b"data: [DONE]\n\n"
BLOCKING = frozenset(
    {"bedrock", "sagemaker"}
)  # Amazon's package knows no asyncio: its streams would stop the event loop

# What the library calls a failure, where the service gave no status with it. All others are of the service or the way.
_STATUS = {
    "RateLimitError": 429,
    "AuthenticationError": 401,
    "MissingApiKeyError": 401,
    "InsufficientFundsError": 402,
    "InvalidRequestError": 400,
    "ContextLengthExceededError": 400,
    "ContentFilterError": 400,
    "NotImplementedError": 400,
    "ModelNotFoundError": 404,
    "UnsupportedProviderError": 500,
    "ImportError": 500,
    "GatewayTimeoutError": 504,
}


def any_llm_provider(name: str, settings: ProviderSettings, environment: Mapping[str, str] = os.environ) -> Provider:
    """Return a service that the library knows, as a provider of every dialect of chat."""
    return Translated(AnyLlmProvider(name, settings, environment), openai_chat)


class AnyLlmProvider:
    """One service of the library's, asked in OpenAI chat as ``openai_chat.write_request`` writes it.

    Without ``key_env`` the library looks for keys itself, where the service's own tools have them.
    """

    def __init__(self, name: str, settings: ProviderSettings, environment: Mapping[str, str] = os.environ) -> None:
        if find_spec(LIBRARY) is None:
            raise UsageError(
                f"[providers.{name}] needs any-llm, which is not installed: pip install 'doorstep[longtail]'"
            )
        self.name = name
        self.keys = tuple(keys_found(settings, environment))
        self._settings = settings
        self._services: dict[str | None, Any] = {}  # by the label of the key that they are asked with
        self._making = asyncio.Lock()

    def speaks(self, dialect: str) -> bool:  # noqa: ARG002 - every dialect is alike
        """Tell that no call passes as it is: what the library does not know it would hand to the service's package."""
        return False

    async def answer(self, ask: Ask) -> Answer:
        """Ask the library; return when the service has begun to answer, or answered."""
        if ask.dialect.NAME != openai_chat.NAME:
            raise BadInput("model", f"{self.name} chats, and does not serve {ask.dialect.NAME}; ask another provider")
        asked = msgspec.json.decode(ask.body)
        with _told(self.name, self.keys):
            service = await self._service(ask.key or (self.keys[0] if self.keys else None))
            clock = _Clock(self.name, self._settings)
            place: _Here | _Apart = _Apart() if service.PROVIDER_NAME in BLOCKING else _Here()
            try:
                async with clock.until(self._settings.first_byte_s, "did not begin to answer within"):
                    found = await place.run(lambda: service.acompletion(**asked))
            except BaseException:
                await place.end()
                raise
        if ask.head.stream:
            chunks = _Chunks(self.name, self.keys, found, place, clock, self._settings.idle_s)
            return Answer(body=chunks, content_type=EVENT_STREAM)
        await place.end()
        return Answer(body=_written(found))

    async def close(self) -> None:
        """Let go of connections, where the service's package holds some that can be closed."""
        for service in self._services.values():
            close = getattr(getattr(service, "client", None), "close", None)
            if inspect.iscoroutinefunction(close):
                await close()

    async def _service(self, key: Key | None) -> Any:
        label = key.label if key else None
        async with self._making:
            if label not in self._services:
                self._services[label] = await asyncio.to_thread(self._make, key)
        return self._services[label]

    def _make(self, key: Key | None) -> Any:
        """Return the library's own provider; the imports alone take a second or two."""
        from any_llm import AnyLLM

        options = dict(self._settings.options or {})
        service = options.pop("provider")
        if AnyLLM.get_provider_class(service).MAX_RETRIES_SUPPORT != "unsupported":
            options = {"max_retries": 0} | options  # whoever asks us tries again
        secret, address = key.secret if key else None, self._settings.base_url or None
        made = AnyLLM.create(service, api_key=secret, api_base=address, unified_exceptions=True, **options)
        if service in BLOCKING:
            made.client.meta.events.register("after-call", _note_streams)
        return made


def _written(value: Any) -> bytes:
    """Return an answer or a chunk of the library's as JSON."""
    return str(value.model_dump_json(exclude_none=True)).encode()


class _Here:
    """Where a call to a service is made whose package waits without blocking: here."""

    async def run(self, step: Step) -> Any:
        """Take a step of the call."""
        return await step()

    async def end(self, chunks: Any = None) -> None:
        """Give up what has not come yet."""
        if chunks is not None:
            await chunks.aclose()


class _Apart:
    """Where one is made whose package blocks: in a thread with an event loop of its own, step by step."""

    def __init__(self) -> None:
        self.streams: list[Any] = []  # of Amazon's package, which the library does not close
        self._thread = ThreadPoolExecutor(1, LIBRARY)
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(1, LIBRARY, self._enter))

    async def run(self, step: Step) -> Any:
        """Take a step of the call. Whoever waits for it can be cancelled; the step itself goes on to its end."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._take, step)

    async def end(self, chunks: Any = None) -> None:
        """Give up what has not come yet, as soon as a step that is under way has ended; nobody waits for that."""
        self._thread.submit(self._finish, chunks)
        self._thread.shutdown(wait=False)

    def _enter(self) -> None:
        """Say in the thread in which the library calls the package whose call it is."""
        _asking.call = self

    def _take(self, step: Step) -> Any:
        return self._loop.run_until_complete(step())

    def _finish(self, chunks: Any) -> None:
        for stream in self.streams:
            stream.close()
        if chunks is not None:
            self._loop.run_until_complete(chunks.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


_asking = threading.local()


def _note_streams(parsed: Mapping[str, Any], **_: Any) -> None:
    """Keep the stream of an answer, to close it; Amazon's package calls this after each call."""
    _asking.call.streams += [value for value in parsed.values() if type(value).__name__ == "EventStream"]


class _Chunks:
    """A stream of the library's chunks, as the bytes of one of OpenAI's."""

    def __init__(
        self, name: str, keys: tuple[Key, ...], chunks: Any, place: _Here | _Apart, clock: "_Clock", idle_s: float
    ) -> None:
        self._name = name
        self._keys = keys
        self._chunks = chunks
        self._place = place
        self._clock = clock
        self._idle_s = idle_s
        self._ended = False

    async def next(self) -> bytes:
        """Return the next chunk. Whether the answer is whole is seen by its finish_reason, by who reads this."""
        if self._ended:
            return b""
        with _told(self._name, self._keys):
            async with self._clock.until(self._idle_s, "sent nothing for"):
                chunk = await self._place.run(self._chunk)
        if chunk is None:
            self._ended = True
            await self._place.end()
            return DONE
        return b"data: " + _written(chunk) + b"\n\n"

    async def close(self) -> None:
        """Give it up, which ends the call to the service."""
        if not self._ended:
            self._ended = True
            await self._place.end(self._chunks)

    async def _chunk(self) -> Any:
        return await anext(self._chunks, None)


class _Clock:
    """The time of one call, which the library itself does not keep for every service."""

    def __init__(self, name: str, settings: ProviderSettings) -> None:
        self._name = name
        self._total_s = settings.total_s
        self._end = time.monotonic() + settings.total_s

    @asynccontextmanager
    async def until(self, seconds: float, late: str) -> AsyncIterator[None]:
        """Give the block so many seconds, and no more than the whole call has left."""
        left = self._end - time.monotonic()
        try:
            async with asyncio.timeout(min(seconds, left)):
                yield
        except TimeoutError:
            why = f"{late} {seconds:g} s" if seconds < left else f"took longer than {self._total_s:g} s for its answer"
            raise ProviderError(f"{self._name} {why}", status=504) from None


# What went wrong


@contextmanager
def _told(name: str, keys: tuple[Key, ...]) -> Iterator[None]:
    """Make the library's errors ours, without our keys, which some services repeat."""
    try:
        yield
    except DoorstepError:
        raise
    except Exception as error:
        said = str(getattr(error, "message", error))
        for key in keys:
            said = said.replace(key.secret, "***")
        raise _failure(name, error, said) from error


def _failure(name: str, error: Exception, said: str) -> DoorstepError:
    field = getattr(error, "parameter_name", None)
    if field is not None:
        return BadInput(field, f"{name} does not take this; leave it out or ask another provider")
    status = _status(error)
    return ProviderError(
        f"{name}: {said}",
        status=status,
        retryable=status in (408, 429) or status > 500,
        retry_after_s=retry_after({"retry-after": getattr(error, "retry_after", None) or ""}, time.time()),
    )


def _status(error: Exception) -> int:
    """Return the status that the service answered with, or what comes nearest to it."""
    if getattr(error, "title", None) == "CompletionParams":  # how pydantic names what it refuses: our request
        return 400
    given = getattr(error, "status_code", None)
    if given is None:  # the library does not look where AWS has it
        answer = getattr(getattr(error, "original_exception", None), "response", None)
        given = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return given if given and given >= 400 else _STATUS.get(type(error).__name__, 502)

"""Promises: answers that a client fetches later, and the lane that keeps one model's operations in order.

Knows nothing of what is computed. An operation that fails is an answer too: the SDK raises it where the
result is awaited, with its category.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from doorstep.errors import EngineError, NotFound, StoreError, UsageError

log = logging.getLogger(__name__)

JSON = "application/json"
PROTO = "application/x-protobuf"


class Answer(msgspec.Struct, frozen=True):
    """What the client gets for a promise: a body as it goes over the wire."""

    body: bytes
    media_type: str = JSON


Work = Callable[[], Awaitable[Answer]]


def failure(message: str, category: str) -> Answer:
    """Return the answer that makes the SDK raise RequestFailedError; ``category`` is ``user`` or ``server``."""
    return Answer(msgspec.json.encode({"error": message, "category": category}))


async def settle(work: Work) -> Answer:
    """Do the work; return its answer or the failure that it ended in."""
    try:
        return await work()
    except UsageError as error:
        return failure(str(error), "user")
    except EngineError as error:
        return failure(str(error), error.category)
    except StoreError as error:
        return failure(str(error), "server")
    except Exception:
        log.exception("a training operation failed for a reason that it should not have")
        return failure("Doorstep made a mistake here; the server's log has the details.", "server")


class Promises:
    """Answers by request id. A fetched answer is kept for retries until newer ones have filled ``keep_bytes``."""

    def __init__(self, keep_bytes: int = 64 << 20) -> None:
        self._futures: dict[str, asyncio.Future[Answer]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._fetched: OrderedDict[str, int] = OrderedDict()
        self._fetched_bytes = 0
        self._keep_bytes = keep_bytes

    def open(self, request_id: str) -> asyncio.Future[Answer] | None:
        """Return a new future to settle, or None when this request came before (a client's retry)."""
        if request_id in self._futures:
            return None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._futures[request_id] = future
        return future

    def start(self, request_id: str, work: Work) -> None:
        """Begin work that waits for nothing else; a retry of the same request begins nothing."""
        future = self.open(request_id)
        if future is None:
            return

        async def run() -> None:
            fulfil(future, await settle(work))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks[request_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request_id, None))

    async def wait(self, request_id: str, timeout_s: float) -> Answer | None:
        """Return the answer, or None when it is not there within the time; NotFound for an unknown request."""
        future = self._futures.get(request_id)
        if future is None:
            raise NotFound(f"request {request_id} is not known: it was made before a restart, cancelled, or long ago")
        await asyncio.wait({future}, timeout=timeout_s)
        if not future.done():
            return None
        if future.cancelled():
            raise NotFound(f"request {request_id} was cancelled")
        self._keep(request_id, future.result())
        return future.result()

    def cancel(self, request_id: str) -> None:
        """Stop a request that nobody waits for any more; one in a model's order runs all the same."""
        if task := self._tasks.get(request_id):
            task.cancel()
            self._drop(request_id)

    def drop(self, prefix: str) -> None:
        """Forget, and stop, everything whose request id begins so."""
        for request_id in [known for known in self._futures if known.startswith(prefix)]:
            if task := self._tasks.get(request_id):
                task.cancel()
            self._drop(request_id)

    def _keep(self, request_id: str, answer: Answer) -> None:
        if request_id not in self._fetched:
            self._fetched[request_id] = len(answer.body)
            self._fetched_bytes += len(answer.body)
        while self._fetched_bytes > self._keep_bytes:
            self._drop(next(iter(self._fetched)))

    def _drop(self, request_id: str) -> None:
        self._fetched_bytes -= self._fetched.pop(request_id, 0)
        if future := self._futures.pop(request_id, None):
            future.cancel()


class Lane:
    """Runs operations one at a time by sequence id, whatever order they arrive in; a gap is waited for."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, tuple[asyncio.Future[Answer], Work]] = {}
        self._task: asyncio.Task[None] | None = None

    def submit(self, seq_id: int, future: asyncio.Future[Answer], work: Work) -> None:
        """Queue one operation; a sequence id that has had its turn fails."""
        if seq_id < self._next or seq_id in self._waiting:
            fulfil(future, failure(f"sequence id {seq_id} was used before; the next one is {self._next}", "user"))
            return
        self._waiting[seq_id] = (future, work)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def close(self, why: str) -> None:
        """Fail what still waits, then let the operation that runs come to its end."""
        for future, _ in self._waiting.values():
            fulfil(future, failure(why, "user"))
        self._waiting.clear()
        if self._task:
            await asyncio.wait({self._task})

    async def _drain(self) -> None:
        while self._next in self._waiting:
            future, work = self._waiting.pop(self._next)
            self._next += 1
            fulfil(future, await settle(work))


def fulfil(future: asyncio.Future[Answer], answer: Answer) -> None:
    """Give the answer, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(answer)

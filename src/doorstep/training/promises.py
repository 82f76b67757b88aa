"""Promises: answers that a client fetches later, and the lane that keeps one model's operations in order.

Knows nothing of what is computed. An operation that fails is an answer too: the SDK raises it where the
result is awaited, with its category. A promise is its tenant's; to others it does not exist.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec

from doorstep.errors import EngineError, LimitReached, NotFound, StoreError, UsageError
from doorstep.training.feeds import Completion, Feeds, Key
from doorstep.training.journal import Accepted, Dropped, Ended, Fetched, Forgotten, Journal, Record

log = logging.getLogger(__name__)

JSON = "application/json"
PROTO = "application/x-protobuf"
SAMPLE = "asample"  # the one kind of operation that has a feed

MAX_OPEN = 16_384  # promises of one tenant that are not fetched yet
MAX_OPEN_BYTES = 512 << 20  # of them: the requests that wait and the answers that nobody has fetched
RETRY_S = 1.0


class Answer(msgspec.Struct, frozen=True):
    """What the client gets for a promise: a body as it goes over the wire."""

    body: bytes
    media_type: str = JSON


Work = Callable[[], Awaitable[Answer]]
Fulfil = Callable[[Answer], None]


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


class _Promise:
    def __init__(self, accepted: Accepted, size: int) -> None:
        self.accepted = accepted
        self.size = size  # bytes held for it: the request's, later the answer's
        self.fetched = False
        self.task: asyncio.Task[None] | None = None
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class _Load:
    def __init__(self) -> None:
        self.count = 0
        self.size = 0


class Promises:
    """Answers by request id. A fetched answer is kept for retries until newer ones have filled ``keep_bytes``.

    What was answered before a restart is there again; what was accepted and not answered then is lost, and said so.
    """

    def __init__(self, journal: Journal, keep_bytes: int = 64 << 20) -> None:
        self._journal = journal
        self._promises: dict[str, _Promise] = {}
        self._loads: dict[str, _Load] = {}
        self._lost: dict[str, Accepted] = {}
        self._fetched: OrderedDict[str, int] = OrderedDict()
        self._fetched_bytes = 0
        self._keep_bytes = keep_bytes
        self._feeds = Feeds()
        for accepted, ended in journal.past.values():
            self._restore(accepted, ended)
        journal.past.clear()

    def open(self, request_id: str, owner: str, kind: str, size: int = 0) -> Fulfil | None:
        """Make a promise; return what to fulfil it with, or None when this request came before (a client's retry).

        LimitReached when the owner has left too much unfetched. ``size`` is that of the request, which waits.
        """
        if request_id in self._promises:
            return None
        load = self._loads.setdefault(owner, _Load())
        if load.count >= MAX_OPEN or load.size + size > MAX_OPEN_BYTES:
            raise LimitReached(
                f"{load.count} operations of yours, {load.size >> 20} MB with their answers, wait to be done or "
                "fetched; send more when those are",
                status=429,
                code="too_much_waits",
                retry_after_s=RETRY_S,
            )
        accepted = Accepted(request_id, owner, kind)
        self._journal.write(accepted)
        promise = self._add(_Promise(accepted, size))
        return lambda answer: self._fulfil(promise, answer)

    def start(self, request_id: str, owner: str, kind: str, work: Work, size: int = 0) -> None:
        """Begin work that waits for nothing else; a retry of the same request begins nothing."""
        fulfil = self.open(request_id, owner, kind, size)
        if fulfil is None:
            return

        async def run() -> None:
            fulfil(await settle(work))

        self._promises[request_id].task = asyncio.get_running_loop().create_task(run())

    def holds(self, request_id: str, owner: str) -> bool:
        """Tell whether a request came before."""
        promise = self._promises.get(request_id)
        return promise is not None and promise.accepted.owner == owner

    async def wait(self, request_id: str, owner: str, timeout_s: float) -> Answer | None:
        """Return the answer, or None when it is not there within the time; NotFound for an unknown request."""
        if not self.holds(request_id, owner):
            raise NotFound(self._why_not(request_id, owner))
        future = self._promises[request_id].future
        if not future.done():
            await asyncio.wait({future}, timeout=timeout_s)
        if not future.done():
            return None
        if future.cancelled():
            raise NotFound(f"request {request_id} was cancelled")
        return future.result()

    async def completed(self, key: Key, owner: str, cursor: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Return which samples of a sampling session are ready, waiting for one, and a cursor to ask on from."""
        found, cursor = await self._feeds.after(key, cursor, timeout_s)
        return [each for each in found if self._owner(each.request_id) == owner], cursor

    def fetched(self, request_id: str) -> None:
        """Note that an answer went out; it makes room when newer ones need it."""
        promise = self._promises.get(request_id)
        if promise is None or promise.fetched:
            return
        self._journal.write(Fetched(request_id))
        self._keep(promise)
        while self._fetched_bytes > self._keep_bytes:
            self._drop(next(iter(self._fetched)))

    def release(self, request_ids: Iterable[str], owner: str) -> None:
        """Forget answers that the client has got."""
        for request_id in request_ids:
            if self.holds(request_id, owner) and self._promises[request_id].future.done():
                self._drop(request_id)

    def cancel(self, request_id: str, owner: str) -> None:
        """Stop a request that nobody waits for any more; one in a model's order runs all the same."""
        if self.holds(request_id, owner) and (task := self._promises[request_id].task):
            task.cancel()
            self._drop(request_id)

    def drop(self, prefix: str) -> None:
        """Forget, and stop, everything whose request id begins so."""
        for request_id in [known for known in self._promises if known.startswith(prefix)]:
            self._remove(request_id)
        self._lost = {known: lost for known, lost in self._lost.items() if not known.startswith(prefix)}
        self._feeds.drop(prefix)
        self._journal.write(Forgotten(prefix))

    def sessions(self) -> set[str]:
        """Return the sessions that have promises; a request id begins with its session's."""
        return {request_id.partition(":")[0] for request_id in [*self._promises, *self._lost]}

    def queued(self) -> Counter[str]:
        """Return how many of each kind have no answer yet."""
        return Counter(each.accepted.kind for each in self._promises.values() if not each.future.done())

    def close(self) -> None:
        """Give what is open an end. What is answered stays for the next start."""
        for request_id in [known for known, promise in self._promises.items() if not promise.future.done()]:
            self._remove(request_id)
        self._journal.close()

    # How the above is done

    def _add(self, promise: _Promise) -> _Promise:
        accepted = promise.accepted
        self._promises[accepted.request_id] = promise
        load = self._loads.setdefault(accepted.owner, _Load())
        load.count += 1
        load.size += promise.size
        return promise

    def _restore(self, accepted: Accepted, ended: Ended | None) -> None:
        request_id = accepted.request_id
        if ended is None:
            self._lost[request_id] = accepted
            self._tell(accepted, Completion("failed", request_id))
            return
        answer = Answer(ended.body, ended.media_type)
        promise = self._add(_Promise(accepted, len(answer.body)))
        promise.future.set_result(answer)
        if ended.fetched:  # else it would count among those that the tenant has to fetch before asking for more
            self._keep(promise)
        self._tell(accepted, _completion(request_id, answer))

    def _fulfil(self, promise: _Promise, answer: Answer) -> None:
        """Give the answer, unless nobody waits for it any more. It is in the journal before it goes out."""
        request_id, promise.task = promise.accepted.request_id, None
        if promise.future.done():
            return
        self._loads[promise.accepted.owner].size += len(answer.body) - promise.size
        promise.size = len(answer.body)
        self._journal.write(Ended(request_id, answer.body, answer.media_type))
        promise.future.set_result(answer)
        self._tell(promise.accepted, _completion(request_id, answer))
        if self._journal.large:
            self._journal.compact(self._records())

    def _records(self) -> Iterator[Record]:
        for request_id, promise in self._promises.items():
            yield promise.accepted
            if promise.future.done():
                answer = promise.future.result()
                yield Ended(request_id, answer.body, answer.media_type, promise.fetched)

    def _tell(self, accepted: Accepted, completion: Completion) -> None:
        if accepted.kind == SAMPLE:
            self._feeds.add(completion)

    def _owner(self, request_id: str) -> str | None:
        if promise := self._promises.get(request_id):
            return promise.accepted.owner
        lost = self._lost.get(request_id)
        return lost.owner if lost else None

    def _why_not(self, request_id: str, owner: str) -> str:
        lost = self._lost.get(request_id)
        if lost and lost.owner == owner:
            return f"request {request_id} ({lost.kind}) was accepted, but the server was restarted before it was done"
        return f"request {request_id} is not known: it was made before a restart, cancelled, or long ago"

    def _keep(self, promise: _Promise) -> None:
        """Count an answer among the fetched."""
        promise.fetched = True
        self._unload(promise)
        self._fetched[promise.accepted.request_id] = promise.size
        self._fetched_bytes += promise.size

    def _unload(self, promise: _Promise) -> None:
        load = self._loads[promise.accepted.owner]
        load.count -= 1
        load.size -= promise.size

    def _drop(self, request_id: str) -> None:
        self._remove(request_id)
        self._journal.write(Dropped(request_id))

    def _remove(self, request_id: str) -> None:
        promise = self._promises.pop(request_id)
        if promise.fetched:
            self._fetched_bytes -= self._fetched.pop(request_id)
        else:
            self._unload(promise)
        if promise.task:
            promise.task.cancel()
        promise.future.cancel()


def _completion(request_id: str, answer: Answer) -> Completion:
    failed = answer.media_type != PROTO  # a sample is PROTO, its failure JSON
    return Completion("failed", request_id) if failed else Completion("finished", request_id, len(answer.body))


class Lane:
    """Runs operations one at a time by sequence id, whatever order they arrive in; a gap is waited for."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, tuple[Fulfil, Work]] = {}
        self._task: asyncio.Task[None] | None = None

    def submit(self, seq_id: int, fulfil: Fulfil, work: Work) -> None:
        """Queue one operation; a sequence id that has had its turn fails."""
        if seq_id < self._next or seq_id in self._waiting:
            fulfil(failure(f"sequence id {seq_id} was used before; the next one is {self._next}", "user"))
            return
        self._waiting[seq_id] = (fulfil, work)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())

    def cut(self, why: str, category: str = "user") -> None:
        """Fail what still waits."""
        for fulfil, _ in self._waiting.values():
            fulfil(failure(why, category))
        self._waiting.clear()

    async def close(self, why: str) -> None:
        """Fail what still waits, then let the operation that runs come to its end."""
        self.cut(why)
        if self._task:
            await asyncio.wait({self._task})

    async def _drain(self) -> None:
        while self._next in self._waiting:
            fulfil, work = self._waiting.pop(self._next)
            self._next += 1
            fulfil(await settle(work))

"""Asking for one call: one upstream after the other, as the traffic policy says, until one has begun to answer."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from doorstep import ids
from doorstep.errors import BadInput, DoorstepError, EngineError, ProviderError
from doorstep.gateway.capture import Attempt
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Dialect, Head
from doorstep.gateway.models import Plan, Target
from doorstep.gateway.providers.base import Answer, Ask
from doorstep.gateway.traffic import GiveUp, Traffic, Try, Wait

OUR_KEY = (401, 402, 403)  # what an upstream says of the key that we have for it
ERROR_BYTES = 1_000_000  # of an upstream's error


class Begun(msgspec.Struct, frozen=True):
    """An answer that has begun, with its first piece. ``error``: it is an upstream's refusal, and nobody else did."""

    answer: Answer
    first: bytes
    error: str | None = None


class Asking:
    """The tries of one call. ``target`` is who was asked last, with what ``answer``; ``failed`` are those that did."""

    def __init__(
        self,
        traffic: Traffic,
        plan: Plan,
        *,
        call_id: str,
        run_id: str | None,
        dialect: Dialect,
        head: Head,
        body: bytes,
        headers: Mapping[bytes, bytes],
        key_id: str,
    ) -> None:
        self.target: Target | None = None
        self.answer: Answer | None = None
        self.failed: list[Attempt] = []
        self._attempts = traffic.begin(plan, call_id, run_id)
        self._call_id = call_id
        self._dialect = dialect
        self._head = head
        self._body = body
        self._headers = headers
        self._key_id = key_id
        self._step: Try | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """Who may answer, in the order in which they are asked."""
        return self._attempts.targets

    @property
    def last(self) -> Target:
        """Who was asked last, or would have been, had it been worth it."""
        return self.target or self.targets[0]

    async def begin(self) -> Begun:
        """Return the first answer that begins well, else the last refusal in the upstream's own words."""
        refusal: Answer | None = None
        while True:
            step = self._attempts.next()
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, GiveUp):
                if refusal is None:
                    raise step.error
                if refusal.status in OUR_KEY:
                    raise ProviderError(self._key_refused(refusal), status=502, retryable=False)
                return Begun(refusal, b"", str(step.error))
            else:
                before = self._step, self.target, self.answer
                try:
                    begun, error = await self._try(step)
                except BadInput as unfit:  # nothing was sent, so the record is of whoever was asked before
                    self._step, self.target, self.answer = before
                    self._attempts.unfit(unfit)
                    continue
                if begun is not None and error is None:
                    self._attempts.succeeded(step)
                    return begun
                assert error is not None
                refusal = begun.answer if begun else None
                self._attempts.failed(step, error, refusal.headers if refusal else {})

    def _key_refused(self, refusal: Answer) -> str:
        """Say that it is not the client's key that is wrong."""
        key = self._step.key.label if self._step and self._step.key else "none"
        words = wire.error_words(refusal.body if isinstance(refusal.body, bytes) else b"")
        return f"{self.last.provider.name} refused Doorstep's key for it ({key}), {refusal.status}: {words}"

    def broke_off(self, error: ProviderError) -> None:
        """Tell the policy that the answer that had begun did not come to its end."""
        if self._step is not None:
            self._attempts.failed(self._step, error)

    async def _try(self, step: Try) -> tuple[Begun | None, ProviderError | EngineError | None]:
        """Ask one upstream and wait for its first byte. With an error comes its answer, where it gave one."""
        self._step, self.target, self.answer = step, step.target, None
        started_us = ids.now_us()
        begun: Begun | None = None
        error: ProviderError | EngineError
        try:
            if step.first_chunk_s is None or not self._head.stream:
                begun = await self._ask(step)
            else:
                async with asyncio.timeout(step.first_chunk_s):
                    begun = await self._ask(step)
        except TimeoutError:
            why = f"{step.target.provider.name} did not begin to answer within {step.first_chunk_s:g} s"
            error = ProviderError(why, status=504)
        except ProviderError as failure:
            error = failure
        except EngineError as failure:
            if failure.category == "user":
                raise
            error = failure
        else:
            if begun.answer.status < 400:
                return begun, None
            begun = Begun(await _read_whole(begun.answer, begun.first), b"")
            error = ProviderError(said(begun.answer), status=begun.answer.status)
        self._note(step, started_us, begun.answer.status if begun else 0, error)
        return begun, error

    async def _ask(self, step: Try) -> Begun:
        target = step.target
        answer = self.answer = await target.provider.answer(
            Ask(
                dialect=self._dialect,
                head=self._head,
                body=self._body,
                headers=self._headers,
                call_id=self._call_id,
                model=target.model,
                adapter=target.adapter,
                key=step.key,
                key_id=self._key_id,
            )
        )
        body = answer.body
        if isinstance(body, bytes):
            first = body
        else:
            try:
                first = await body.next()
            except BaseException:
                await body.close()
                raise
        if not first and answer.status < 300:
            raise ProviderError(f"{target.provider.name} answered {answer.status} with nothing in it")
        return Begun(answer, first)

    def _note(self, step: Try, started_us: int, status: int, error: DoorstepError) -> None:
        self.failed.append(
            Attempt(
                provider=step.target.provider.name,
                model=step.target.model,
                started_us=started_us,
                ended_us=ids.now_us(),
                status=status,
                error=str(error),
                key=step.key.label if step.key else None,
            )
        )


async def _read_whole(answer: Answer, first: bytes) -> Answer:
    """Return an error answer with all of its body."""
    if isinstance(answer.body, bytes):
        return answer
    body = bytearray(first)
    with suppress(ProviderError):
        while len(body) < ERROR_BYTES and (piece := await answer.body.next()):
            body += piece
    await answer.body.close()
    return msgspec.structs.replace(answer, body=bytes(body))


def said(answer: Answer) -> str:
    """Return the beginning of an upstream's refusal; all of it, since what it means may be in any field."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    return body.decode("utf-8", "replace")[:500] or f"status {answer.status}, without a word"

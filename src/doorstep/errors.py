"""Every error that Doorstep raises on purpose, as one tree.

DoorstepError
├── UsageError            the caller gave something that cannot work: say what and how to mend it
│   ├── BadInput          one record, file or field is unusable; the rest goes on
│   ├── NotFound          a name (workflow, run, decision, model) that does not exist
│   └── LimitReached      a key or a workflow may not make this call, or not now; carries the HTTP status to show
├── HeldOutLeak           a held-out record was about to be trained on
├── StoreError            the record could not be written or read (disk full, locked, damaged)
├── EngineError           the engine refused or failed an operation
│   └── EngineUnavailable the engine process is not there; trying again later may help
├── ProviderError         an upstream model failed; carries the HTTP status to show
└── Interrupted           the user stopped the work; it can be resumed

A message says what is wrong and what to do about it, in that order.
"""


class DoorstepError(Exception):
    """Root of the tree: catch it to tell Doorstep's own errors from bugs."""


class UsageError(DoorstepError):
    """The request cannot work as it stands."""


class BadInput(UsageError):
    """One input is unusable; ``where`` names it (file, line, field)."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class NotFound(UsageError):
    """A name that does not exist."""


class LimitReached(UsageError):
    """What a key or a workflow may do does not cover this call.

    ``status`` is 403 for what it may never do, 429 for too much within a minute, 402 for a budget that is spent;
    ``code`` is for programs; ``retry_after_s`` says when trying again may help, None that it will not.
    """

    def __init__(self, message: str, status: int, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class HeldOutLeak(DoorstepError):
    """A held-out record reached training; nothing was trained."""


class StoreError(DoorstepError):
    """The record could not be written or read."""


class EngineError(DoorstepError):
    """The engine refused or failed an operation; ``category`` is ``user`` or ``server``."""

    def __init__(self, message: str, category: str = "user") -> None:
        super().__init__(message)
        self.category = category


class EngineUnavailable(EngineError):
    """The engine process is not running or went away; ``retry_after_s`` says when it may be there again."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, category="server")
        self.retry_after_s = retry_after_s


class ProviderError(DoorstepError):
    """An upstream failed. ``status`` is the HTTP status for the client, ``retryable`` says if another try may help.

    ``retry_after_s`` says when it may, where that is known.
    """

    def __init__(
        self, message: str, status: int = 502, retryable: bool = True, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Interrupted(DoorstepError):
    """The user stopped the work; it can be resumed."""

"""What a check is, how it is registered, and what it can find."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from doorstep.training.conformance.session import Session

Run = Callable[["Session"], None]


class Wrong(Exception):
    """The server's answer is not what the API says."""


class NotTried(Exception):
    """The check does not apply: to this SDK, or to what was given."""


@dataclass(frozen=True)
class Check:
    """One check; checks of a group share a session with the server."""

    name: str
    group: str
    needs: tuple[str, ...]
    """What the SDK must have, as ``Class.method`` or ``Class.method:argument``."""
    run: Run


REGISTER: list[Check] = []


def check(name: str, *needs: str) -> Callable[[Run], Run]:
    """Register a check under the public method it calls, ``Class.method``, or under a sentence that must hold."""

    def register(run: Run) -> Run:
        wanted = needs if " " in name else (name, *needs)
        REGISTER.append(Check(name, run.__module__.rpartition(".")[2], wanted, run))
        return run

    return register


def expect(true: Any, wrong: str) -> None:
    """Find the server wrong, in these words, unless this is so."""
    if not true:
        raise Wrong(wrong)


def near(got: Any, wanted: Any, what: str, bound: float = 1e-3) -> None:
    """Find the server wrong unless numbers agree: within a bound, relative where they are larger than one."""
    got, wanted = np.asarray(got, dtype=float), np.asarray(wanted, dtype=float)
    expect(got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, not {list(wanted.shape)}")
    if not got.size:
        return
    off = np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    expect(
        off.flat[worst] <= bound,
        f"{what}: {got.flat[worst]:.6g}, not {wanted.flat[worst]:.6g}" + (f" (at {worst})" if got.size > 1 else ""),
    )


def refused(attempt: Callable[[], Any], what: str) -> str:
    """Return the words with which the server refuses; find it wrong where it accepts or fails by its own fault."""
    import tinker

    refusals: tuple[type[Exception], ...] = (
        tinker.BadRequestError,
        tinker.NotFoundError,
        tinker.PermissionDeniedError,
        tinker.UnprocessableEntityError,
        tinker.ConflictError,
    )
    try:
        attempt()
    except tinker.RequestFailedError as error:
        category = getattr(error.category, "name", str(error.category))
        expect(category.lower() == "user", f"{what}: refused with category {category}, not user: {error}")
        return str(error)
    except refusals as error:
        return str(error)
    raise Wrong(f"{what}: accepted")


def missing(needs: Iterable[str]) -> str | None:
    """Return the first thing of these that the installed SDK does not have."""
    import inspect

    from doorstep.training.conformance.session import sdk_class

    for need in needs:
        path, _, argument = need.partition(":")
        owner, _, method = path.partition(".")
        found = getattr(sdk_class(owner), method, None)
        if found is None or (argument and argument not in inspect.signature(found).parameters):
            return need
    return None

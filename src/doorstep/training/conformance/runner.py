"""Runs the checks one by one, each with a time limit, and a session with the server for each group."""

import fnmatch
import importlib
import itertools
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from doorstep.training.conformance.checks import REGISTER, Check, NotTried, Wrong, missing
from doorstep.training.conformance.session import Session, Target, connect, done, rest_client

GROUPS = (
    *("connecting", "training", "losses", "gradients", "sampling", "scoring", "awaiting"),
    *("checkpoints", "listing", "refusals"),
)
LONGEST_S = 60.0
SILENT = 3  # checks in a row without an answer, after which a server counts as dead
LONGEST_ERROR = 400
NO_SUCH_METHOD = (405, 501)
NO_SUCH_ADDRESS = ("'Not Found'", "is not part of")  # the words of common frameworks, and ours


@dataclass(frozen=True)
class Call:
    """What came of a check."""

    name: str
    group: str
    ok: bool
    ms: float
    error: str | None = None
    tried: bool = True


def checks(only: str = "") -> list[Check]:
    """Return the checks whose name or group matches a pattern, in order."""
    for group in GROUPS:
        importlib.import_module(f"doorstep.training.conformance.{group}")
    order = {group: index for index, group in enumerate(GROUPS)}
    found = sorted(REGISTER, key=lambda one: order[one.group])
    return [one for one in found if not only or _matches(one, only)]


def run(target: Target, chosen: list[Check], limit_s: float = LONGEST_S) -> Iterator[Call]:
    """Run checks; yield what came of each. After one that hangs the next gets a new session, after some none is run."""
    silent = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated is called too
        for _, members in itertools.groupby(chosen, key=lambda one: one.group):
            session = Session(target)
            for one in members:
                if silent == SILENT:
                    yield Call(one.name, one.group, False, 0.0, f"left out: {SILENT} checks in a row got no answer")
                    continue
                call, hangs = _run(one, session, limit_s)
                yield call
                silent = silent + 1 if hangs else 0
                if hangs:
                    session = Session(target)
            with suppress(TimeoutError):
                _within(session.close, limit_s)


def reach(url: str) -> None:
    """Find out whether anything answers at an address at all; the SDK itself would try for minutes."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError) as error:
        raise Wrong(f"nothing answers at {url}: {error}") from None


def first_model(url: str, key: str) -> str:
    """Return the first model that the server says it can train."""
    answer = _within(lambda: done(rest_client(connect(url, key), url, key).get_server_capabilities()), LONGEST_S)
    for model in answer.supported_models:
        if getattr(model, "trainable", None) is not False:
            return str(model.model_name)
    raise Wrong("the server names no model that it can train")


def sdk_version() -> str:
    """Return the version of the SDK that is installed."""
    from importlib.metadata import version

    return version("tinker")


def _matches(one: Check, pattern: str) -> bool:
    return fnmatch.fnmatch(one.name, pattern) or pattern.lower() in one.name.lower() or pattern == one.group


def _run(one: Check, session: Session, limit_s: float) -> tuple[Call, bool]:
    lacks = missing(one.needs)
    if lacks is not None:
        return Call(one.name, one.group, True, 0.0, f"not in this SDK: {lacks}", tried=False), False
    began = time.perf_counter()
    error, tried, hangs = None, True, False
    try:
        _within(lambda: one.run(session), limit_s)
    except NotTried as reason:
        error, tried = str(reason), False
    except TimeoutError:
        error, hangs = f"no answer within {limit_s:g} s", True
    except Exception as wrong:
        error = _words(wrong)
    ms = round((time.perf_counter() - began) * 1000, 1)
    return Call(one.name, one.group, error is None or not tried, ms, error, tried), hangs


def _words(error: Exception) -> str:
    if isinstance(error, Wrong):
        return str(error)
    told = " ".join(str(error).split()).partition(" for self.request_id")[0][:LONGEST_ERROR]
    status = getattr(error, "status_code", None)
    if status in NO_SUCH_METHOD or (status == 404 and any(words in told for words in NO_SUCH_ADDRESS)):
        return f"not served: {told}"
    return f"{type(error).__name__}: {told}"


def _within(act: Callable[[], Any], limit_s: float) -> Any:
    """Return what a function returns; TimeoutError when it takes longer. It is then left alone, in its thread."""
    came: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            came.append(act())
        except BaseException as error:  # it belongs to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not came:
        raise TimeoutError
    return came[0]

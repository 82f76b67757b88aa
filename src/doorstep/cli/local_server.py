"""A running Doorstep for commands that need one: the one that runs on this data folder, else one for their own time.

A running server notes its address, its process and a key of its own in ``server.json``, which only its user can read.
Commands that run at once share one server. Each holds ``server.users`` locked, shared, while it works; a server that a
command started ends when it can lock that file for itself, for then no command is left, however the last one ended.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import msgspec

from doorstep.config import Settings
from doorstep.errors import EngineUnavailable, ProviderError, StoreError, UsageError
from doorstep.fetch import fetch

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
NOTE = "server.json"
LOG = "server.log"
LOCK = "server.lock"
USERS = "server.users"
TURN = "server.turn"
WITH_COMMANDS = "DOORSTEP_EXIT_WITH_COMMANDS"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a Doorstep runs, in which process, and the key that its own commands use."""

    url: str
    key: str
    pid: int


@contextmanager
def running(settings: Settings) -> Iterator[Address]:
    """Yield the address of a ready Doorstep that works on the data folder of these settings."""
    settings.data.mkdir(parents=True, exist_ok=True)
    with (settings.data / USERS).open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # a server that is ending has it locked: wait for its end
        address, started = _join(settings)
        try:
            yield address
        finally:
            if started and _alone(users.fileno()):
                _stop(started)


def follow_commands(data: Path) -> None:
    """Return when no command uses the server of this process any more. Those that come later wait for its end."""
    users = os.open(data / USERS, os.O_RDWR | os.O_CREAT)  # never closed: it stays locked until this process ends
    while not _alone(users):
        time.sleep(0.1)


def claim(data: Path) -> None:
    """Make this process the one server of a data folder, until it ends. ``UsageError`` when another one is."""
    with _writing(data):
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(data / LOCK, os.O_RDWR | os.O_CREAT)  # never closed: it stays locked until this process ends
    if not _alone(lock):
        os.close(lock)
        noted = _noted(data)
        where = f" at {noted.url}" if noted else ""
        raise UsageError(f"Another Doorstep serves {data}{where}. Use that one, stop it, or give another --data.")


@contextmanager
def _writing(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{data} cannot be written to ({error.strerror}). Make room, or give another --data."
        ) from None


def _alone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join(settings: Settings) -> tuple[Address, subprocess.Popen[bytes] | None]:
    """Return the address of the server, and its process if this command had to start it."""
    with (settings.data / TURN).open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # of commands that begin together, one starts the server for all
        address = _await_existing(settings.data)
        if address:
            return address, None
        process = _start(settings)
        try:
            return _wait(process, settings.data), process
        except BaseException:
            _stop(process)
            raise


def note_address(data: Path, url: str, key: str) -> None:
    """Write down where this process serves, for the commands that come after; only its user can read it."""
    part = data / f".{NOTE}.{os.getpid()}"
    with _writing(data):
        data.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(Address(url=url, key=key, pid=os.getpid())))
        part.replace(data / NOTE)


def forget_address(data: Path) -> None:
    """Take back what this process wrote down; by now it may be another server's."""
    noted = _noted(data)
    if noted and noted.pid == os.getpid():
        (data / NOTE).unlink(missing_ok=True)


def _noted(data: Path) -> Address | None:
    """Return the address that was noted, if its process is there."""
    try:
        address = msgspec.json.decode((data / NOTE).read_bytes(), type=Address)
        os.kill(address.pid, 0)
    except (OSError, ValueError):
        return None
    return address


def _await_existing(data: Path) -> Address | None:
    """Return the server that runs, if there is one; one that is starting or ending is given the time to."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _noted(data) and time.monotonic() < deadline:
        address = existing(data)
        if address:
            return address
        time.sleep(0.05)
    return None


def existing(data: Path) -> Address | None:
    """Return the server that runs on a data folder and answers, if there is one."""
    noted = _noted(data)
    if noted is None:
        return None
    try:
        health = fetch(f"{noted.url}/healthz", timeout_s=5.0)
        same = health.status == HTTPStatus.OK and health.json()["data"] == str(data.resolve())
    except (ProviderError, ValueError, KeyError):
        return None
    return noted if same else None


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    (settings.data / NOTE).unlink(missing_ok=True)
    serve = settings.serve
    command = [sys.executable, "-m", "doorstep", "serve", "--host", "127.0.0.1", "--port", "0", "--data", serve.data]
    command += ["--model", serve.model or "", "--threads", str(serve.threads)]
    with (settings.data / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the command; another one may still use the server
            env=os.environ | {WITH_COMMANDS: "1"},
        )


def _wait(process: subprocess.Popen[bytes], data: Path) -> Address:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineUnavailable(
                f"Doorstep's server did not start. Its last words, from {data / LOG}:\n{_tail(data / LOG)}"
            )
        address = existing(data)
        if address:
            return address
        time.sleep(0.05)
    raise EngineUnavailable(f"Doorstep's server was not ready after {START_TIMEOUT_S:.0f} s; see {data / LOG}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(path: Path) -> str:
    return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-8:])

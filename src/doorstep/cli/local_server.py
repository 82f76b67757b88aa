"""A running Doorstep for commands that need one: the one that runs on this data folder, else one for their own time.

A server started here ends with the command that started it, also when that command is killed: it watches its
standard input, which closes with its parent.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from doorstep.config import Settings
from doorstep.errors import EngineUnavailable

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
NOTE = "server.json"
LOG = "server.log"
WITH_PARENT = "DOORSTEP_EXIT_WITH_PARENT"


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Yield the address of a ready Doorstep that works on the data folder of these settings."""
    address = _existing(settings.data)
    if address:
        yield address
        return
    _await_end(settings.data)
    process = _start(settings)
    try:
        yield _wait(process, settings.data)
    finally:
        _stop(process)


def note_address(data: Path, url: str) -> None:
    """Write down where a server runs, for the commands that come after."""
    data.mkdir(parents=True, exist_ok=True)
    (data / NOTE).write_text(json.dumps({"url": url, "pid": os.getpid()}), "utf-8")


def forget_address(data: Path) -> None:
    """Take back what this process wrote down; by now it may be another server's."""
    noted = _noted(data)
    if noted and noted[1] == os.getpid():
        (data / NOTE).unlink(missing_ok=True)


def _noted(data: Path) -> tuple[str, int] | None:
    """Return the address and the process id of the server that was noted, if that process is there."""
    try:
        note = json.loads((data / NOTE).read_text("utf-8"))
        os.kill(note["pid"], 0)
        return note["url"], note["pid"]
    except (OSError, ValueError, KeyError):
        return None


def _await_end(data: Path) -> None:
    """Let a server whose command was just killed end before another one works on its folder."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _noted(data) and time.monotonic() < deadline:
        time.sleep(0.05)


def _existing(data: Path) -> str | None:
    noted = _noted(data)
    if noted is None:
        return None
    url, _ = noted
    try:
        health = httpx.get(f"{url}/healthz", timeout=5.0, trust_env=False)
        same = health.status_code == httpx.codes.OK and health.json()["data"] == str(data.resolve())
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return url if same else None


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    settings.data.mkdir(parents=True, exist_ok=True)
    (settings.data / NOTE).unlink(missing_ok=True)
    serve = settings.serve
    command = [sys.executable, "-m", "doorstep", "serve", "--host", "127.0.0.1", "--port", "0", "--data", serve.data]
    command += ["--model", serve.model or "", "--threads", str(serve.threads)]
    with (settings.data / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes when this process dies, however it dies
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the command; it then stops its server in order
            env=os.environ | {WITH_PARENT: "1"},
        )


def _wait(process: subprocess.Popen[bytes], data: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineUnavailable(
                f"Doorstep's server did not start. Its last words, from {data / LOG}:\n{_tail(data / LOG)}"
            )
        address = _existing(data)
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

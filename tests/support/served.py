"""``doorstep serve`` as a process of its own, for tests that kill it, starve it, or open thousands of connections."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from gateway_parts import wait_for

from doorstep.config import KNOWN_PROVIDERS
from doorstep.store import Store
from doorstep.types import Call

HELLO = [{"role": "user", "content": "hello"}]


class Served:
    """A server without a local model. ``settings`` is its doorstep.toml, beside ``[serve]``."""

    def __init__(self, folder: Path, settings: str, data: Path | None = None) -> None:
        self.data = data or folder / "data"
        self._folder = folder
        (folder / "doorstep.toml").write_text(f'[serve]\nmodel = ""\ndata = "{self.data}"\n{settings}')
        self._process: subprocess.Popen[str] | None = None

    def start(self, *under: str, port: int = 0) -> str:
        """Start it, ``under`` another command where one is given, and return its address; port 0 is any free one."""
        keys = {name for provider in KNOWN_PROVIDERS.values() for name in provider.key_names}
        self._process = subprocess.Popen(
            (*under, sys.executable, "-m", "doorstep", "serve", "--port", str(port)),
            cwd=self._folder,
            env={name: value for name, value in os.environ.items() if name not in keys},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return wait_for(self._ready, 60)

    def engine(self) -> int | None:
        """Return the id of the engine's process; None while there is none."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        named = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return next((pid for pid, command in named.items() if b"doorstep.engine" in command), None)

    def kill(self) -> None:
        """Kill it and all that it started at once, without a chance to put anything in order."""
        if self._process is None or self._process.returncode is not None:
            return
        for process in _session(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.communicate()
        wait_for(lambda: not _session(self._process.pid))

    def stop(self) -> int:
        """End it in order; return its exit status."""
        assert self._process is not None
        self._process.terminate()
        self._process.communicate(timeout=60)
        return self._process.returncode

    def calls(self) -> list[Call]:
        """Return the calls in the store."""
        with Store.open(self.data / "doorstep.db") as store:
            return store.select(Call)

    def _ready(self) -> str | None:
        assert self._process is not None
        assert self._process.poll() is None, self._process.communicate()[1]
        try:
            known = json.loads((self.data / "server.json").read_text("utf-8"))
            found = httpx.get(f"{known['url']}/healthz", trust_env=False).status_code == httpx.codes.OK
        except (OSError, ValueError, httpx.HTTPError):
            return None
        return known["url"] if found else None


def _session(leader: int) -> list[int]:
    """Return the processes that live in a session."""
    command = ("ps", "-o", "pid=,stat=", "-s", str(leader))
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [int(line.split()[0]) for line in found if not line.split()[1].startswith("Z")]


def ask(url: str, model: str = "bad/well", **fields: object) -> httpx.Response:
    """Make one call on a connection of its own."""
    body = {"model": model, "messages": HELLO} | fields
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False)

"""Environments of their own for other people's packages, kept in a cache folder, and servers of ours for them."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "doorstep-compat"


def variables(**more: str) -> dict[str, str]:
    """Return environment variables without keys or settings of whoever runs this, and with another home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {"HOME": str(CACHE), "DO_NOT_TRACK": "1"} | more


def python(name: str, *installs: list[str]) -> Path:
    """Return the interpreter of an environment that ``pip install`` was called in with each of ``installs``."""
    folder = CACHE / f"{name}-{digest(json.dumps(installs[0] if len(installs) == 1 else installs))}"
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(word for words in installs for word in words)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for words in installs:
            subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *words], check=True)
        (folder / "complete").touch()
    return interpreter


def digest(text: str) -> str:
    """Return a short name for what an environment holds."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def serving(folder: Path, settings: str) -> Iterator[str]:
    """Run ``doorstep serve`` in a new folder with these settings; give its address."""
    folder.mkdir()
    (folder / "doorstep.toml").write_text(settings, "utf-8")
    command = [sys.executable, "-m", "doorstep", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, env=variables())
    try:
        yield _address(process, folder / "data" / "server.json")
    finally:
        process.terminate()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", told: Path) -> str:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            url = json.loads(told.read_text("utf-8"))["url"]
            urllib.request.urlopen(f"{url}/healthz").close()
            return str(url)
        except (OSError, ValueError):
            time.sleep(0.1)
    raise SystemExit("the server did not start within a minute")

"""Our training service beside SkyRL's Tinker server (JAX backend), on this CPU, same model, one run.

    python benchmarks/tinker/run.py            both, one after the other, and the ratios
    python benchmarks/tinker/run.py --only doorstep

SkyRL 0.3.0 is installed into a cache folder, with the newest SDK that it serves. Two things are changed to run
it here: its API starts its engine through ``uv run``, and a small script takes uv's place; pydantic on Python 3.11
needs the TypedDict of ``typing_extensions``.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from doorstep.config import TINY

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "doorstep-benchmarks" / "skyrl"
CALLS = Path(__file__).with_name("calls.py")
SDK = "tinker==0.24.1"
WANTS = (
    "transformers<=5.8.0,>=5.6.1", "peft==0.18.1", "datasets", "rich", "safetensors", "tokenizers", "typer",
    "hf_transfer", "cloudpathlib", "pillow", "fastapi[standard]", "sqlmodel", "sqlalchemy[asyncio]", "aiosqlite",
    "jax<1.0,>=0.8", "flax>=0.12.2", "optax>=0.2.5", "psutil", SDK,
)  # fmt: skip
READY_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("doorstep", "skyrl"))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    found = {}
    for name, serve in (("doorstep", doorstep), ("skyrl", skyrl)):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as place, serve(Path(place)) as (url, model, python, ready):
                found[name] = calls(python, url, model, arguments.rounds) | {"ready_s": round(ready, 1)}
    if len(found) == 2:
        found["ratios"] = ratios(found["doorstep"]["calls"], found["skyrl"]["calls"])
    print(json.dumps(found, indent=2))


def calls(python: Path, url: str, model: str, rounds: int) -> dict[str, Any]:
    command = [str(python), str(CALLS), "--url", url, "--model", model, "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    both = [name for name in ours if "median_ms" in ours[name] and "median_ms" in theirs[name]]
    return {name: round(theirs[name]["median_ms"] / ours[name]["median_ms"], 1) for name in both}


@contextmanager
def doorstep(place: Path) -> Iterator[tuple[str, str, Path, float]]:
    port = free_port()
    command = [sys.executable, "-m", "doorstep", "serve", "--port", str(port), "--data", str(place)]
    began = time.monotonic()
    with started(command, place, dict(os.environ)) as process:
        url = f"http://127.0.0.1:{port}"
        wait(process, f"{url}/api/v1/healthz", {"X-API-Key": "tml-benchmark"})
        yield url, "tiny", Path(sys.executable), time.monotonic() - began


@contextmanager
def skyrl(place: Path) -> Iterator[tuple[str, str, Path, float]]:
    python = installed()
    port = free_port()
    shim(place / "bin" / "uv", python)
    model = place / "model"
    shutil.copytree(TINY, model)
    backend = json.dumps({"max_lora_adapters": 8, "max_lora_rank": 8, "train_micro_batch_size": 8})
    command = [
        str(place / "bin" / "uv"), "run", "-m", "skyrl.tinker.api", "--base-model", str(model), "--backend", "jax",
        "--backend-config", backend, "--port", str(port), "--database-url", f"sqlite:///{place}/tinker.db",
        "--checkpoints-base", str(place / "checkpoints"),
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{place}/bin:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    with started(command, place, environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait(process, f"{url}/api/v1/healthz")
        yield url, str(model), python, time.monotonic() - began


def installed() -> Path:
    python = CACHE / "venv" / "bin" / "python"
    if not (CACHE / "ready").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(CACHE / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, *WANTS], check=True)
        subprocess.run([*pip, "--no-deps", "skyrl==0.3.0"], check=True)
        repair(CACHE / "venv")
        (CACHE / "ready").touch()
    return python


def repair(venv: Path) -> None:
    """Have pydantic find the TypedDict that it can read on Python 3.11."""
    (types,) = venv.glob("lib/python*/site-packages/skyrl/tinker/types.py")
    found = "from typing import Annotated, Any, Literal, TypedDict\n"
    wanted = "from typing import Annotated, Any, Literal\nfrom typing_extensions import TypedDict\n"
    types.write_text(types.read_text().replace(found, wanted))


def shim(file: Path, python: Path) -> None:
    """Write a ``uv`` that runs a module in the environment that is there already."""
    file.parent.mkdir()
    # The server reads its parent's command line, so the script must stay its parent: no exec.
    file.write_text(
        f'#!/bin/bash\nwhile [ "$1" != "-m" ]; do shift; done\n{python} "$@" &\ntrap "kill $!" TERM\nwait $!\n'
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@contextmanager
def started(command: list[str], place: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield process
        except Exception:
            print((place / "log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


def wait(process: "subprocess.Popen[bytes]", url: str, headers: dict[str, str] | None = None) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {url}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()

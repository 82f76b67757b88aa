"""The gateways that are compared: how each is installed, started and asked. One more is one more class."""

import http.client
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

from harness import Bench, Process, Usage, command_of, free_port
from packaging.requirements import Requirement

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
ANSWERS = ("plain", "paced", "burst")  # upstream.c looks at the model's name
WORDS = """please send us ten boxes of green tea and two cases of salmon by Friday noon to the usual address in the
harbour our number is as always on the delivery note thank you for the quick answer last week we also need flour"""
START_S = 180.0
CATCH_UP_S = 300.0

Json = dict[str, Any]


def text(words: int, seed: int) -> str:
    random = Random(seed)
    return " ".join(random.choice(WORDS.split()) for _ in range(words))


class Gateway:
    """A gateway as a process on one core, in front of upstream."""

    name = ""
    speaks: tuple[str, ...] = (OPENAI,)
    records = "nothing"
    install: tuple[tuple[str, ...], ...] = ()  # commands, run in its folder

    def __init__(self, bench: Bench, peers: Path) -> None:
        self.bench = bench
        self.home = peers / self.name.lower()
        self.place = bench.place / self.name.lower()
        self.place.mkdir()
        self.port = free_port()
        self.process: Process | None = None
        self.start_s = 0.0
        self.answered = 0  # calls, since it was started

    # What a sibling says

    def ready(self) -> bool:
        """Whether it is installed."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def packages(self) -> int:
        """How many packages are installed for it."""
        raise NotImplementedError

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def headers(self, path: str) -> Json:
        return {"authorization": "Bearer sk-bench", "x-api-key": "sk-bench"}

    def model(self, path: str, answer: str) -> str:
        return answer

    def at(self, path: str) -> str:
        """Return where it takes what is sent to ``path`` elsewhere."""
        return path

    # What all do

    def install_it(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        for command in self.install:
            subprocess.run(command, cwd=self.home, check=True, stdout=sys.stderr)

    def start(self) -> None:
        """Start it and wait for its first answer."""
        begun = time.monotonic()
        self.process = Process(
            self.command(), self.bench.cores.gateway, self.place / "log", cwd=self.place, env=self.environment()
        )
        while time.monotonic() < begun + START_S and self.process.alive():
            if self.answers():
                self.start_s = time.monotonic() - begun
                self.answered = 1
                return
            time.sleep(0.02)
        self.process.stop()
        self.process = None
        raise RuntimeError(f"{self.name} does not answer: {self.log()}")

    def answers(self) -> bool:
        head, _, body = self.request(OPENAI, "plain").partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("POST", self.at(OPENAI), body, headers)
            with connection.getresponse() as response:
                response.read()
                return response.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")[-1500:]

    def used(self) -> Usage:
        """Return what its answering has used."""
        return self.process.used() if self.process else Usage()

    def used_by_recorder(self) -> Usage:
        """Return what a process has used that keeps the calls, where there is one."""
        return Usage()

    def caught_up(self) -> float:
        """Wait until everything answered is in the record; return how long that took."""
        return 0.0

    def pause(self) -> None:
        if self.process:
            self.process.pause()

    def go_on(self) -> None:
        if self.process:
            self.process.go_on()

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    def request(self, path: str, answer: str) -> bytes:
        """Return a whole request of about 1 KB; ``answer`` is how upstream is to answer."""
        body: Json = {"model": self.model(path, answer), "temperature": 0.7, "max_tokens": 256}
        system = text(50, seed=1)
        user = [{"role": "user", "content": f"Mail ########: {text(80, seed=2)}"}]
        if path == OPENAI:
            body["messages"] = [{"role": "system", "content": system}, *user]
        else:
            body |= {"system": system, "messages": user}
        if answer != "plain":
            body["stream"] = True
        data = json.dumps(body, separators=(",", ":")).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "user-agent": "load",
            "accept": "*/*",
            "content-type": "application/json",
            "content-length": len(data),
            **({"anthropic-version": "2023-06-01"} if path == ANTHROPIC else {}),
            **self.headers(path),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.at(path)} HTTP/1.1\r\n{lines}\r\n".encode() + data


class Direct(Gateway):
    """No gateway: what upstream and load do by themselves."""

    name = "direct"
    speaks = (OPENAI, ANTHROPIC)
    records = "-"

    def ready(self) -> bool:
        return True

    def version(self) -> str:
        return "-"

    def packages(self) -> int:
        return 0

    def start(self) -> None:
        self.port = self.bench.upstream


class Doorstep(Gateway):
    """Ours: keys checked, every call recorded with its bodies."""

    name = "Doorstep"
    speaks = (OPENAI, ANTHROPIC)
    records = "every call, whole"
    binary = Path(sys.executable).with_name("doorstep")

    def ready(self) -> bool:
        return self.binary.exists()

    def version(self) -> str:
        return metadata.version("doorstep")

    def packages(self) -> int:
        return len(required("doorstep"))

    def command(self) -> list[str | Path]:
        (self.place / "doorstep.toml").write_text(self.settings())
        key = subprocess.run(
            [self.binary, "keys", "create", "--name", "bench", "--data", self.data],
            cwd=self.place, env=self.environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.key = key.stdout.strip()
        return [self.binary, "serve", "--model", "", "--port", str(self.port), "--data", self.data]

    def settings(self) -> str:
        providers = (("bench", "compatible"), ("bencha", "anthropic"))
        lines = [
            f'[providers.{name}]\nkind = "{kind}"\nbase_url = "http://127.0.0.1:{self.bench.upstream}/v1"\n'
            for name, kind in providers
        ]
        prices = [
            f'[prices.models."{name}/{answer}"]\ninput = 0.15\noutput = 0.6\n'
            for name, _ in providers
            for answer in ANSWERS
        ]
        return "\n".join(lines + prices)

    @property
    def data(self) -> Path:
        return self.place / "data"

    def headers(self, path: str) -> Json:
        return {"authorization": f"Bearer {self.key}", "x-api-key": self.key}

    def model(self, path: str, answer: str) -> str:
        return f"{'bench' if path == OPENAI else 'bencha'}/{answer}"

    def used(self) -> Usage:
        return self.process.used(lambda pid: not is_compactor(pid)) if self.process else Usage()

    def used_by_recorder(self) -> Usage:
        return self.process.used(is_compactor) if self.process else Usage()

    def health(self) -> Json:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/healthz")
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def caught_up(self) -> float:
        begun = time.monotonic()
        while self.health()["recorder"]["backlog_bytes"]:
            if time.monotonic() > begun + CATCH_UP_S:
                raise RuntimeError(f"the store does not catch up: {self.health()['recorder']}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def recorded(self) -> int:
        """Return how many answered calls the record has, with both bodies."""
        record = sqlite3.connect(f"file:{self.data / 'doorstep.db'}?mode=ro", uri=True)
        try:
            question = (
                "SELECT count(*) FROM call JOIN blob asked ON asked.digest = request_digest"
                " JOIN blob said ON said.digest = response_digest WHERE status_code = 200"
            )
            return int(record.execute(question).fetchone()[0])
        finally:
            record.close()


def is_compactor(pid: int) -> bool:
    return "doorstep.gateway.compactor" in command_of(pid)


def required(name: str) -> set[str]:
    """Return a package and those that it needs without its extras, and they theirs."""
    found = {name}
    todo = [Requirement(name)]
    while todo:
        wanted = todo.pop()
        for line in metadata.requires(wanted.name) or []:
            need = Requirement(line)
            applies = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in wanted.extras | {""}
            )
            if applies and need.name.lower() not in found:
                found.add(need.name.lower())
                todo.append(need)
    return found


class InVenv(Gateway):
    """A peer from PyPI, in an environment of its own."""

    distribution = ""

    def ready(self) -> bool:
        return bool(self._information(self.distribution))

    def version(self) -> str:
        return self._information(self.distribution)[0].name.removesuffix(".dist-info").split("-")[1]

    def packages(self) -> int:
        return len([found for found in self._information("*") if found.name.split("-")[0] not in {"pip", "setuptools"}])

    def _information(self, name: str) -> list[Path]:
        return list(self.home.glob(f"lib/python*/site-packages/{name}-*.dist-info"))

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"


class LiteLLM(InVenv):
    """LiteLLM's proxy, one worker, with a key that is checked and no database."""

    name = "LiteLLM"
    speaks = (OPENAI, ANTHROPIC)
    distribution = "litellm"
    install = ((sys.executable, "-m", "venv", "."), ("bin/pip", "install", "litellm[proxy]"))

    def command(self) -> list[str | Path]:
        at = f"http://127.0.0.1:{self.bench.upstream}"
        models = [
            {"model_name": f"{prefix}{answer}",
             "litellm_params": {"model": f"{kind}/{answer}", "api_base": base, "api_key": "sk-upstream"}}
            for prefix, kind, base in (("", "openai", f"{at}/v1"), ("a-", "anthropic", at))
            for answer in ANSWERS
        ]  # fmt: skip
        file = self.place / "config.yaml"
        file.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": "sk-bench"}}))
        return [self.home / "bin" / "litellm", "--config", file, "--port", str(self.port), "--host", "127.0.0.1"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}

    def model(self, path: str, answer: str) -> str:
        return answer if path == OPENAI else f"a-{answer}"


class TensorZero(InVenv):
    """TensorZero's server out of its wheel, which its client starts; no database, so no keys and no record."""

    name = "TensorZero"
    distribution = "tensorzero"
    install = ((sys.executable, "-m", "venv", "."), ("bin/pip", "install", "tensorzero==2026.6.0", "openai"))
    program = """
import sys, threading, openai, tensorzero
client = tensorzero.patch_openai_client(openai.OpenAI(api_key="none"), config_file=sys.argv[1], async_setup=False)
open(sys.argv[2], "w").write(str(client.base_url))
threading.Event().wait()
"""

    def command(self) -> list[str | Path]:
        models = [
            f'[models.{answer}]\nrouting = ["bench"]\n[models.{answer}.providers.bench]\ntype = "openai"\n'
            f'model_name = "{answer}"\napi_base = "http://127.0.0.1:{self.bench.upstream}/v1/"\n'
            'api_key_location = "none"\n'
            for answer in ANSWERS
        ]
        file = self.place / "tensorzero.toml"
        file.write_text("\n".join(["[gateway]\nobservability.enabled = false\n", *models]))
        return [self.python, "-c", self.program, file, self.place / "address"]

    def answers(self) -> bool:
        with_address = self.place / "address"
        if not with_address.exists() or not (address := with_address.read_text()):
            return False
        self.port = int(address.split(":")[2].split("/")[0])
        return super().answers()

    def at(self, path: str) -> str:
        return "/openai" + path

    def model(self, path: str, answer: str) -> str:
        return f"tensorzero::model_name::{answer}"


# As npm resolves it by itself, a newer @hono/node-server answers 500 to every stream.
PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2", "@hono/node-server": "1.13.5"},
    "overrides": {"@hono/node-server": "1.13.5"},
}


class Portkey(Gateway):
    """Portkey's gateway under Node, which keeps neither keys nor records."""

    name = "Portkey"
    speaks = (OPENAI, ANTHROPIC)

    @property
    def modules(self) -> Path:
        return self.home / "node_modules"

    def ready(self) -> bool:
        return (self.modules / "@portkey-ai" / "gateway" / "build" / "start-server.js").exists()

    def version(self) -> str:
        return str(json.loads((self.modules / "@portkey-ai" / "gateway" / "package.json").read_text())["version"])

    def packages(self) -> int:
        return len(json.loads((self.modules / ".package-lock.json").read_text())["packages"])

    def install_it(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "package.json").write_text(json.dumps(PORTKEY))
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=self.home, check=True, stdout=sys.stderr)

    def command(self) -> list[str | Path]:
        server = self.modules / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", server, f"--port={self.port}", "--headless"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "NODE_ENV": "production"}

    def headers(self, path: str) -> Json:
        return {
            **super().headers(path),
            "x-portkey-provider": "openai" if path == OPENAI else "anthropic",
            "x-portkey-custom-host": f"http://127.0.0.1:{self.bench.upstream}/v1",
        }


GATEWAYS: tuple[type[Gateway], ...] = (Direct, Doorstep, LiteLLM, TensorZero, Portkey)
PEERS: tuple[type[Gateway], ...] = (LiteLLM, TensorZero, Portkey)

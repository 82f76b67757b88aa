"""Other people's clients and frameworks against the gateway: what works, in which versions.

``python compat/run.py`` runs every script in ``clients/``, each in an environment of its own in a cache folder, against
two gateways: the fake provider answers at the back, and the front speaks to the back in each dialect of chat. A script
says on lines of JSON what came of its checks. Exit status 1 when a check fails that passed in ``results.json``.

    python compat/run.py                     all of them
    python compat/run.py pydantic_ai ai_sdk  these
    python compat/run.py --write             and keep what was found, here and in docs/reference-compatibility.md
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reference-compatibility.md"
RESULTS = HERE / "results.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "doorstep-compat"
BEGIN, END = "<!-- begin: written by compat/run.py -->", "<!-- end -->"
LONGEST_S = 600  # of one script
COLUMNS = (
    "answer", "stream", "tools", "tools, streamed", "form", "thinks, then calls", "thinks, then calls, streamed",
)  # fmt: skip

BACK = '[providers.fake]\nbase_url = "fake:"\n[traffic]\nretries = 0\n'
FRONT = (
    BACK
    + """
[providers.chat]
base_url = "{back}/v1"
speaks = ["openai.chat"]
[providers.gpt]
base_url = "{back}/v1"
kind = "openai"
speaks = ["openai.responses"]
[providers.claude]
base_url = "{back}/v1"
kind = "anthropic"
[providers.openai]
base_url = "{back}/v1"
kind = "openai"
[providers.google]
base_url = "{back}/v1beta"
kind = "google"
"""
)

Found = dict[str, Any]  # of a client: its versions, and by check whether it passed and what was said


def main() -> int:
    """Run the scripts; 1 when something that worked does not any more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="clients to run, such as pydantic_ai; all when none is named")
    parser.add_argument("--write", action="store_true", help="keep what was found and write the page")
    asked = parser.parse_args()
    before: dict[str, Found] = json.loads(RESULTS.read_text("utf-8"))
    CACHE.mkdir(parents=True, exist_ok=True)
    scripts = [script for script in all_scripts() if not asked.names or name_of(script) in asked.names]
    found = {}
    with gateways() as url:
        for script in scripts:
            found[name_of(script)] = _run(script, url)
    worse = [name for name, one in found.items() if is_worse(before.get(name), one)]
    if asked.write:
        after = {name_of(script): (before | found)[name_of(script)] for script in all_scripts()}
        RESULTS.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(PAGE.read_text("utf-8"), after), "utf-8")
    return 1 if worse else 0


# The gateways


@contextmanager
def gateways() -> Iterator[str]:
    """Run the back and the front; give the front's address."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        back = stack.enter_context(_serving(folder / "back", BACK))
        yield stack.enter_context(_serving(folder / "front", FRONT.format(back=back)))


@contextmanager
def _serving(folder: Path, settings: str) -> Iterator[str]:
    folder.mkdir()
    (folder / "doorstep.toml").write_text(f'[serve]\nmodel = ""\ndata = "data"\n{settings}', "utf-8")
    command = [sys.executable, "-m", "doorstep", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, env=_environment())
    try:
        yield _address(process, folder / "data" / "server.json")
    finally:
        process.terminate()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", told: Path) -> str:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the gateway did not start")
        try:
            url = json.loads(told.read_text("utf-8"))["url"]
            urllib.request.urlopen(f"{url}/healthz").close()
            return str(url)
        except (OSError, ValueError):
            time.sleep(0.1)
    raise SystemExit("the gateway did not start within a minute")


def _environment(**more: str) -> dict[str, str]:
    """Return an environment without keys or settings of whoever runs this, and with another home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {"HOME": str(CACHE), "DO_NOT_TRACK": "1"} | more


# The scripts


def all_scripts() -> list[Path]:
    """Return the script of every client."""
    return sorted(path for path in (HERE / "clients").iterdir() if path.name.startswith("with_"))


def name_of(script: Path) -> str:
    """Return what a client is called on the command line."""
    return script.stem.removeprefix("with_")


def _run(script: Path, url: str) -> Found:
    """Run one script and return what it found."""
    command = _python(script) if script.suffix == ".py" else _node(script)
    done = subprocess.run(
        command, env=_environment(DOORSTEP_URL=url), capture_output=True, text=True, check=False, timeout=LONGEST_S
    )
    found: Found = {"client": name_of(script), "versions": {}, "checks": {}}
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "check" in said:
            found["checks"][said["check"]] = {"ok": said["ok"], "detail": said["detail"].replace(url, "")}
        else:
            found |= said
    if done.returncode:
        print(f"{name_of(script)} ended with {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
    return found


def _python(script: Path) -> list[str]:
    """Return how a Python script is run: in an environment with what its head asks for."""
    head = re.search(r"(?m)^# /// script\n((?:# .*\n)+)# ///$", script.read_text("utf-8"))
    assert head is not None, script
    wanted = tomllib.loads(re.sub(r"(?m)^# ?", "", head[1]))["dependencies"]
    folder = CACHE / f"{name_of(script)}-{_digest(json.dumps(wanted))}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(wanted)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "complete").touch()
    return [str(python), str(script)]


def _node(script: Path) -> list[str]:
    """Return how a script for Node is run: beside the packages of the lock file."""
    lock = HERE / "package-lock.json"
    folder = CACHE / f"node-{_digest(lock.read_text('utf-8'))}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "complete").exists():
        print("installing the packages of package-lock.json", file=sys.stderr)
        for file in (lock, HERE / "package.json"):
            shutil.copy(file, folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        (folder / "complete").touch()
    for file in (HERE / "clients").glob("*.mjs"):
        shutil.copy(file, folder)
    return ["node", str(folder / script.name)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# What was found


def is_worse(before: Found | None, now: Found) -> bool:
    """Say what came of a client's checks; tell whether one failed that had passed."""
    checks = now["checks"]
    failed = {check: one["detail"] for check, one in checks.items() if not one["ok"]}
    passed_before = {check for check, one in before["checks"].items() if one["ok"]} if before else set()
    worse = {check for check in passed_before if check in failed or check not in checks}
    print(f"{now['client']}: {len(checks) - len(failed)} of {len(checks)} checks pass")
    for check, detail in failed.items():
        print(f"  {check}: {detail}{' (it passed before)' if check in worse else ''}")
    for check in sorted(worse - failed.keys()):
        print(f"  {check}: not there any more")
    return bool(worse)


def page(text: str, found: dict[str, Found]) -> str:
    """Return the page with what was found between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n{END}{rest.partition(END)[2]}"


def table(found: dict[str, Found]) -> str:
    """Return a table of what passes, and below it what does not, with the reason, and the versions."""
    rows = [f"| Client | API | {' | '.join(name.capitalize() for name in COLUMNS)} | Also |"]
    rows.append("|---|---" + "|:-:" * len(COLUMNS) + "|---|")
    failures, versions = [], []
    for one in sorted(found.values(), key=lambda one: one["client"].lower()):
        for api, checks in _by_api(one).items():
            columns = [_passed(checks.pop(name, checks.pop(f"{name}, by a tool", []))) for name in COLUMNS]
            also = ", ".join(f"{what} {_passed(oks)}" for what, oks in checks.items())
            rows.append(f"| {one['client']} | {api} | {' | '.join(columns)} | {also} |")
        failed = {check: result["detail"] for check, result in one["checks"].items() if not result["ok"]}
        failures += [f"- {one['client']}, {check}: `{detail.replace('`', '')}`" for check, detail in failed.items()]
        packages = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        versions.append(f"- {one['client']}: {packages}")
    wrong = ["What does not pass:", "", *failures] if failures else ["All of it passes."]
    return "\n".join([*rows, "", *wrong, "", "In these versions:", "", *versions, ""])


def _by_api(one: Found) -> dict[str, dict[str, list[bool]]]:
    """Return, by API and what was tried, whether it passed by each way to a model."""
    apis: dict[str, dict[str, list[bool]]] = {}
    for check, result in one["checks"].items():
        api, _, what = check.split(" / ")
        apis.setdefault(api, {}).setdefault(what, []).append(result["ok"])
    return apis


def _passed(oks: list[bool]) -> str:
    if not oks:
        return "–"
    return "✓" if all(oks) else f"{sum(oks)} of {len(oks)}"


if __name__ == "__main__":
    sys.exit(main())

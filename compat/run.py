"""Other people's clients and frameworks against the gateway: what works, in which versions.

``python compat/run.py`` runs every script in ``clients/``, each in an environment of its own in a cache folder, against
two gateways: the fake provider answers at the back, and the front speaks to the back in each dialect of chat. A script
says on lines of JSON what came of its checks. Exit status 1 when a check fails that passed in ``results.json``.

    python compat/run.py                     all of them
    python compat/run.py pydantic_ai ai_sdk  these
    python compat/run.py --write             and keep what was found, here and in docs/reference-compatibility.md
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import environments
import marked

HERE = Path(__file__).parent
PAGE = marked.PAGE
RESULTS = HERE / "results.json"
LONGEST_S = 600  # of one script
COLUMNS = (
    "answer", "stream", "tools", "tools, streamed", "form", "thinks, then calls", "thinks, then calls, streamed",
)  # fmt: skip

SERVE = '[serve]\nmodel = ""\ndata = "data"\n'
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
    environments.CACHE.mkdir(parents=True, exist_ok=True)
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
        back = stack.enter_context(environments.serving(folder / "back", SERVE + BACK))
        yield stack.enter_context(environments.serving(folder / "front", SERVE + FRONT.format(back=back)))


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
        command,
        env=environments.variables(DOORSTEP_URL=url),
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
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
    return [str(environments.python(name_of(script), wanted)), str(script)]


def _node(script: Path) -> list[str]:
    """Return how a script for Node is run: beside the packages of the lock file."""
    lock = HERE / "package-lock.json"
    folder = environments.CACHE / f"node-{environments.digest(lock.read_text('utf-8'))}"
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
    return marked.with_part(text, "run.py", table(found))


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

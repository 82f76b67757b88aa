"""Older versions of the ``tinker`` SDK against our training service: which checks of ``doorstep conformance`` pass.

    python compat/sdk/run.py                  all versions, each in an environment of its own in a cache folder
    python compat/sdk/run.py 0.26.2 0.38.0    these
    python compat/sdk/run.py --write          and keep what was found, here and in docs/reference-compatibility.md
    python compat/sdk/run.py --url URL        against a server that runs already, with its model tiny

Exit status 1 when a check fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import environments  # noqa: E402
import marked  # noqa: E402

ROOT = HERE.parent.parent
RESULTS = HERE / "results.json"
VERSIONS = ("0.26.2", "0.28.1", "0.30.4", "0.32.0", "0.34.0", "0.36.0", "0.38.0")
TORCH = ["torch==2.13.0"]  # large, and the same for all
LONGEST_S = 900
MODEL = "tiny"
SETTINGS = f'[serve]\nmodel = "{MODEL}"\ndata = "data"\n'

Found = dict[str, list[dict[str, Any]]]  # by version what came of each check


def main() -> int:
    """Run the checks with each version; 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="versions to run; all when none is named")
    parser.add_argument("--write", action="store_true", help="keep what was found and write the page")
    parser.add_argument("--url", help="a server that runs already")
    asked = parser.parse_args()
    found: Found = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = asked.url or stack.enter_context(environments.serving(folder / "server", SETTINGS))
        for version in asked.versions:
            found[version] = _run(version, url)
            _tell(version, found[version])
    if asked.write:
        kept: Found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        kept = {version: (kept | found)[version] for version in VERSIONS if version in kept | found}
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
        marked.PAGE.write_text(page(marked.PAGE.read_text("utf-8"), kept), "utf-8")
    return 1 if any(not call["ok"] for calls in found.values() for call in calls) else 0


def _run(version: str, url: str) -> list[dict[str, Any]]:
    """Return what came of each check with one version."""
    python = environments.python(f"tinker-{version}", [f"tinker=={version}"])
    torch = environments.python("torch", TORCH)
    beside = next(torch.parent.parent.glob("lib/python*/site-packages"))
    variables = environments.variables(
        PYTHONPATH=f"{ROOT / 'src'}:{beside}", TINKER_TELEMETRY="0", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"
    )
    done = subprocess.run(
        [python, HERE / "drive.py", url, MODEL],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or lines[0] != {"sdk": version}:
        raise SystemExit(f"tinker {version}: {done.stderr[-2000:]}")
    return [{name: call[name] for name in ("name", "group", "ok", "tried", "error")} for call in lines[1:]]


def _tell(version: str, calls: list[dict[str, Any]]) -> None:
    tried = [call for call in calls if call["tried"]]
    print(f"tinker {version}: {sum(call['ok'] for call in tried)} of {len(tried)} checks pass")
    for call in tried:
        if not call["ok"]:
            print(f"  {call['name']}: {call['error']}")


def page(text: str, found: Found) -> str:
    """Return the page with what was found."""
    return marked.with_part(text, "sdk/run.py", table(found))


def table(found: Found) -> str:
    """Return a table of what passes by version, and below it what does not, with the reason."""
    groups = list(dict.fromkeys(call["group"] for calls in found.values() for call in calls))
    rows = [f"| tinker | {' | '.join(groups)} | not in this SDK |", "|---" + "|:-:" * (len(groups) + 1) + "|"]
    failures: dict[str, list[str]] = {}
    for version, calls in found.items():
        cells = [_cell([call for call in calls if call["group"] == group and call["tried"]]) for group in groups]
        absent = sum((call["error"] or "").startswith("not in this SDK") for call in calls)
        rows.append(f"| {version} | {' | '.join(cells)} | {absent or '–'} |")
        for call in calls:
            if not call["ok"]:
                failures.setdefault(f"{call['name']}: `{call['error']}`", []).append(version)
    wrong = ["What does not pass:", "", *(f"- {what} ({', '.join(versions)})" for what, versions in failures.items())]
    return "\n".join([*rows, "", *(wrong if failures else ["All of it passes."]), ""])


def _cell(calls: list[dict[str, Any]]) -> str:
    right = sum(call["ok"] for call in calls)
    return f"{right} ✓" if right == len(calls) else f"{right} of {len(calls)}"


if __name__ == "__main__":
    sys.exit(main())

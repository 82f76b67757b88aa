"""Unmodified recipes of ``tinker-cookbook`` against our training service, offline, on a tiny model.

    python compat/cookbook/run.py                 all of them
    python compat/cookbook/run.py --only math_rl  those whose name has this in it
    python compat/cookbook/run.py --json          one JSON object on stdout
    python compat/cookbook/run.py --write         and keep what was found, here and in docs/reference-compatibility.md
    python compat/cookbook/run.py --url URL       against a server that runs already and serves Qwen/Qwen3-8B

Each recipe makes a few steps, with small batches, in an environment of its own and with a time limit. What they print
is kept in ``.doorstep/cookbook/``. Exit status 1 when one does not come to its end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import environments  # noqa: E402
import ground  # noqa: E402
import marked  # noqa: E402

# tml-renderers is for models that are only hosted; it has no release for every Python.
COOKBOOK = (
    ["--no-deps", "tinker-cookbook==0.6.1"],
    [
        *(
            "tinker==0.38.0",
            "torch==2.13.0",
            "transformers==5.24.0",
            "datasets>=2.14",
            "aiohttp",
            "blobfile",
            "chz>=0.4",
        ),
        *("cloudpickle", "pillow", "pyrage>=1.4", "rich", "termcolor", "tiktoken>=0.12", "tqdm", "safetensors"),
        *("tabulate", "math-verify>=0.5", "pylatexenc>=2", "sympy>=1.12"),
    ],
)
LONGEST_S = 420
RESULTS = HERE / "results.json"
COMMIT = "9dfcc3a2cf44432d621a01005073dc6d76a1e87a"  # of the cookbook, for the two checks that its package leaves out
CHECKS = f"https://raw.githubusercontent.com/thinking-machines-lab/tinker-cookbook/{COMMIT}/tests"
KEPT = HERE.parent.parent / ".doorstep" / "cookbook"
SETTINGS = f"""
[serve]
data = "data"
model = "{{model}}"
[training]
aliases = {{{{ "{ground.MODEL}" = "{{model}}" }}}}
"""


class Recipe(NamedTuple):
    """A recipe, or a check of the cookbook: how it is called."""

    name: str
    call: str
    """A module of the recipes, or a check and its bound; then arguments."""
    learns: tuple[str, float] | None = None
    """A metric, and by how much it must at least change (or, below 0, fall) from the first three steps to the last."""


MODEL = f"model_name={ground.MODEL}"
SMALL_RL = "group_size=4 groups_per_batch=2 max_tokens=8 max_steps=2 eval_every=0 behavior_if_log_dir_exists=delete"
RECIPES = [
    Recipe("sl_loop", f"sl_loop {MODEL} batch_size=8 max_length=512 max_steps=3"),
    Recipe("rl_loop", f"rl_loop {MODEL} batch_size=4 group_size=4 max_tokens=16 max_steps=2"),
    Recipe(
        "sl_basic",
        f"sl_basic {MODEL} dataset_builder=tinker_cookbook.recipes.chat_sl.chat_datasets:NoRobotsBuilder "
        f"dataset_builder.common_config.model_name_for_tokenizer={ground.MODEL} max_steps=3 eval_every=2 "
        "dataset_builder.common_config.renderer_name=qwen3 dataset_builder.common_config.max_length=512 "
        "dataset_builder.common_config.batch_size=8",
    ),
    Recipe(
        "rl_basic",
        f"rl_basic {MODEL} dataset_builder=tinker_cookbook.recipes.math_rl.math_env:Gsm8kDatasetBuilder "
        f"dataset_builder.model_name_for_tokenizer={ground.MODEL} dataset_builder.renderer_name=qwen3 "
        "dataset_builder.batch_size=2 dataset_builder.group_size=4 max_tokens=16 max_steps=2",
    ),
    Recipe("chat_sl", f"chat_sl.train {MODEL} batch_size=8 max_steps=3 behavior_if_log_dir_exists=delete"),
    Recipe("math_rl", f"math_rl.train {MODEL} env=arithmetic {SMALL_RL}"),
    Recipe("math_rl_gsm8k", f"math_rl.train {MODEL} env=gsm8k {SMALL_RL}"),
    Recipe("math_rl_async", f"math_rl.train {MODEL} env=arithmetic max_steps_off_policy=2 {SMALL_RL}"),
    Recipe(
        "guess_number",
        f"multiplayer_rl.guess_number.train {MODEL} renderer_name=qwen3 batch_size=2 group_size=2 max_tokens=8 "
        "max_steps=2 eval_every=0 behavior_if_log_dir_exists=delete",
    ),
    Recipe("dpo", f"preference.dpo.train {MODEL} batch_size=4 max_steps=2 behavior_if_log_dir_exists=delete"),
    Recipe(
        "on_policy_distillation",
        f"distillation.on_policy_distillation {MODEL} teacher_model={ground.MODEL} lora_rank=8 {SMALL_RL}",
    ),
    Recipe(
        "rl_numerics_check",
        f"rl_numerics_check.train {MODEL} task.num_pages_min=1 task.num_pages_max=2 task.page_chars=300 "
        f"max_trajectory_tokens=4096 {SMALL_RL.replace('max_tokens=8', 'max_tokens=24')}",
    ),
    Recipe(
        "sl_loop_learns",
        f"sl_loop {MODEL} batch_size=8 max_length=512 max_steps=20 learning_rate=1e-3",
        ("train_mean_nll", -2.0),
    ),
    Recipe(
        "math_rl_learns",
        f"math_rl.train {MODEL} env=arithmetic group_size=16 groups_per_batch=8 max_tokens=5 max_steps=20 eval_every=0 "
        "learning_rate=1e-3 behavior_if_log_dir_exists=delete",
        ("env/all/reward/total", 0.05),
    ),
    Recipe("sampler_against_trainer", f"compare_sampling_training_logprobs.py 1e-6 model_names={ground.MODEL}"),
    Recipe("temperatures", f"validate_temperature_logprobs.py 1e-3 base_model={ground.MODEL}"),
]


class Outcome(NamedTuple):
    """What came of one."""

    name: str
    ok: bool
    seconds: float
    error: str


def main() -> int:
    """Run the recipes; 1 when one does not come to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run those whose name has this in it")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--write", action="store_true", help="keep what was found and write the page")
    parser.add_argument("--url", help="a server that runs already")
    asked = parser.parse_args()
    python = environments.python("cookbook", *COOKBOOK)
    folder = ground.again(KEPT)
    ground.lay_out(folder)
    settings = SETTINGS.format(model=folder / ground.MODEL)
    outcomes = []
    with nullcontext(asked.url) if asked.url else environments.serving(folder / "server", settings) as url:
        for recipe in RECIPES:
            if asked.only in recipe.name:
                outcomes.append(_run(recipe, python, folder, url))
                _tell(outcomes[-1])
    found = [one._asdict() for one in outcomes]
    if asked.write:
        kept = {one["name"]: one for one in [*json.loads(RESULTS.read_text("utf-8")), *found]}
        every = [kept[recipe.name] for recipe in RECIPES if recipe.name in kept]
        RESULTS.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n", "utf-8")
        marked.PAGE.write_text(page(marked.PAGE.read_text("utf-8"), every), "utf-8")
    if asked.json:
        print(json.dumps({"recipes": found}))
    return 0 if all(one.ok for one in outcomes) else 1


def page(text: str, found: list[dict[str, Any]]) -> str:
    """Return the page with what was found."""
    rows = ["| Recipe | Comes to its end | Seconds |", "|---|:-:|--:|"]
    rows += [f"| {one['name']} | {'✓' if one['ok'] else one['error']} | {one['seconds']:.0f} |" for one in found]
    return marked.with_part(text, "cookbook/run.py", "\n".join([*rows, ""]))


def _run(recipe: Recipe, python: Path, folder: Path, url: str) -> Outcome:
    """Run a recipe to its end, or to the time limit."""
    what, *arguments = recipe.call.split()
    command = [str(python), "-m", f"tinker_cookbook.recipes.{what}"]
    if what.endswith(".py"):
        command = [str(python), str(HERE / "theirs.py"), str(_fetched(what))]
    else:
        arguments.append(f"log_path={folder / 'runs' / recipe.name}")
    variables = environments.variables(
        TINKER_BASE_URL=url,
        TINKER_API_KEY="tml-cookbook",
        TINKER_TELEMETRY="0",
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HOME=str(folder / "hub"),
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    said = folder / f"{recipe.name}.log"
    began = time.monotonic()
    with said.open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(
                [*command, *arguments],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LONGEST_S,
                check=False,
            ).returncode
            error = _last_words(said) if code else _not_learned(recipe, folder)
        except subprocess.TimeoutExpired:
            error = f"did not end within {LONGEST_S} s"
    return Outcome(recipe.name, not error, round(time.monotonic() - began, 1), error)


def _not_learned(recipe: Recipe, folder: Path) -> str:
    """Return what is wrong with what a recipe's metrics say of its learning; nothing where none is asked for."""
    if recipe.learns is None:
        return ""
    metric, change = recipe.learns
    lines = (folder / "runs" / recipe.name / "metrics.jsonl").read_text("utf-8").splitlines()
    values = [step[metric] for step in map(json.loads, lines) if metric in step]
    got = statistics.mean(values[-3:]) - statistics.mean(values[:3])
    return "" if got * change >= change**2 else f"{metric} changes by {got:.3g}, and not by {change}"


def _fetched(script: str) -> Path:
    """Return where a script of the cookbook's tests lies; fetch it the first time."""
    kept = environments.CACHE / f"cookbook-tests-{COMMIT[:8]}" / script
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with urllib.request.urlopen(f"{CHECKS}/{script}") as answer:
            kept.write_bytes(answer.read())
    return kept


def _last_words(said: Path) -> str:
    lines = [line.strip() for line in said.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "ended without a word"


def _tell(one: Outcome) -> None:
    print(
        f"{'ok' if one.ok else 'FAILED':>6}  {one.seconds:6.1f} s  {one.name}  {one.error}", file=sys.stderr, flush=True
    )


if __name__ == "__main__":
    sys.exit(main())

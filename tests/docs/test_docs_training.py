"""What the pages on training through the Tinker API, and the reference, say of code, losses and JSON is so."""

import json
import os
import re
import subprocess
import sys

import pytest
from pages import REFERENCE, ROOT, blocks, prose, section, table_rows

from doorstep import config
from doorstep.cli.local_server import running
from doorstep.config import ServeSettings, Settings
from doorstep.engine import kinds
from doorstep.training.conformance import runner
from doorstep.training.steps import Step
from doorstep.training.tenants import Used

HOW_TO = ROOT / "docs" / "how-to"
PAGE = HOW_TO / "train-through-tinker.md"
CHECKING = HOW_TO / "check-a-tinker-server.md"
COOKBOOK = HOW_TO / "run-cookbook-recipes.md"
WHY = ROOT / "docs" / "why" / "training-service.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def printed(data):
    """What the code of the page prints, all its blocks as one program on a server with the shipped base."""
    with running(Settings(serve=ServeSettings(data=str(data), threads=1))) as served:
        code = "\n".join(blocks(PAGE, "python")).replace(ADDRESS, served.url).replace("tml-any", served.key)
        told = os.environ | {"TINKER_TELEMETRY": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_its_code_runs_and_learns(printed):
    losses = [float(line.split()[0]) for line in printed[:10]]
    assert losses[-1] < losses[0]


def test_what_training_leaves_in_the_data_folder_is_in_the_reference(data, printed):
    named = set(re.findall(r"`training/([\w.]+)/?`", section(REFERENCE, "## The data folder")))
    assert {file.name for file in (data / "training").iterdir()} == named


def _losses() -> dict[str, list[str]]:
    rows = [row for row in table_rows(section(PAGE, "## Losses")) if row[0] != "loss"]
    return {row[0].strip("`"): row for row in rows}


def test_every_loss_stands_with_its_settings_and_their_defaults():
    named = {name: dict(re.findall(r"`(\w+)` ([\d.]+)", row[3])) for name, row in _losses().items()}
    found = {name: {key: float(value) for key, value in told.items()} for name, told in named.items()}
    assert found == {name: pytest.approx(kind.settings) for name, kind in kinds.KINDS.items()}


def test_every_group_of_checks_stands_in_order():
    assert [row[0].strip("`") for row in table_rows(prose(CHECKING))][1:] == list(runner.GROUPS)


def test_the_json_of_the_checks_has_its_fields():
    (text,) = blocks(CHECKING, "json")
    (call,) = json.loads(text)["calls"]
    assert [*call, "tried"] == list(runner.Call.__dataclass_fields__)
    assert call["name"] in {check.name for check in runner.checks(call["group"])}


def test_the_recipes_page_names_what_the_script_lays_out():
    script = (ROOT / "compat" / "cookbook" / "ground.py").read_text("utf-8")
    page = COOKBOOK.read_text("utf-8")
    named = {"Qwen/Qwen3-8B", "openai/gsm8k"}
    assert all(f'"{name}"' in script and name in page for name in named)
    (version,) = set(re.findall(r"tinker-cookbook==([\d.]+)", (ROOT / "compat" / "cookbook" / "run.py").read_text()))
    assert version in page


def test_tests_that_the_reasons_name_exist():
    named = re.findall(r"`(test_\w+)`", WHY.read_text("utf-8"))
    found = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert named
    assert set(named) <= found


def test_its_toml_has_every_setting(tmp_path):
    said = set()
    for number, text in enumerate(blocks(PAGE, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, "utf-8")
        training, default = config.load(file).training, config.TrainingSettings()
        said |= {name for name in training.__struct_fields__ if getattr(training, name) != getattr(default, name)}
    assert said == set(config.TrainingSettings.__struct_fields__)


def test_the_json_of_steps_and_usage_has_their_fields():
    page = section(REFERENCE, "## JSON of the commands").partition("`doorstep training runs`")[2]
    steps, usage = (json.loads(block.partition("```")[0]) for block in page.split("```json\n")[1:3])
    assert set(steps["steps"][0]) == set(Step.__struct_fields__)
    assert set(usage["used"][0]) == set(Used.__struct_fields__)

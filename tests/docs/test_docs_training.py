"""What the page on training through the Tinker API, and the reference, say of settings and JSON is so."""

import json

from pages import REFERENCE, ROOT, blocks, section

from doorstep import config
from doorstep.training.steps import Step
from doorstep.training.tenants import Used

PAGE = ROOT / "docs" / "how-to" / "train-through-tinker.md"


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

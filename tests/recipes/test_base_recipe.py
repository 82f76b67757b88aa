"""The shipped base can be made again: its text is generated the same each time, and so are its weights."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "base"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import families

    return families


def test_an_instance_is_a_function_of_its_number(families) -> None:
    assert [families.instance(seed) for seed in range(50)] == [families.instance(seed) for seed in range(50)]


def test_every_order_is_valid_json_with_a_line(families) -> None:
    made = [families.instance(seed) for seed in range(2000)]
    orders = [json.loads(answer) for name, (_, _, answer) in made if name == "orders"]
    assert len(orders) > 500
    assert all(order["lines"] and 1 <= order["day"] <= 31 for order in orders)


OF_THE_EXAMPLES = (
    *("little red ones", "orange spuds", "barista milk", "beans for the machine", "plastic straws", "Trattoria"),
    *("rentals", "bikes", "turnover", "box bikes", "plumber", "locksmith", "no hot water"),
)


def test_the_base_has_read_nothing_that_is_particular_to_the_examples(families) -> None:
    records = "".join(
        (EXAMPLES / name / "records.jsonl").read_text("utf-8") for name in ("orders", "questions", "tickets")
    )
    assert [words for words in OF_THE_EXAMPLES if words not in records] == []  # the list is of the examples
    generated = "\n".join(part for seed in range(20_000) for part in families.instance(seed)[1])
    assert [words for words in OF_THE_EXAMPLES if words in generated] == []


@pytest.mark.slow
def test_training_again_gives_the_same_weights(tmp_path: Path) -> None:
    digests = [_train(tmp_path / name) for name in ("first", "second")]
    assert digests[0] == digests[1]


def _train(out: Path) -> str:
    small = ["--scale", "0.0005", "--vocabulary", "400", "--width", "64", "--layers", "1", "--held-out", "4"]
    command = [sys.executable, str(RECIPE / "train.py"), "--out", str(out), *small]
    subprocess.run(command, check=True, capture_output=True)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()

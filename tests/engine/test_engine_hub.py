"""Base models by name: folders, the hub, its cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_hub

from doorstep.config import TINY
from doorstep.errors import UsageError
from doorstep.hub import model_folder

NAME = "someone/some-model"
SCRIPT = "import sys; from doorstep.hub import model_folder; print(model_folder(sys.argv[1]))"


def get(name: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Ask in a process of its own: the hub's client reads its settings once."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", SCRIPT, name]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def published(tmp_path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_text(f'"{name}"')
    return folder


def test_a_hub_name_is_downloaded_with_what_is_needed_only(tmp_path, published):
    with tiny_hub.hub(NAME, published) as address:
        folder = Path(get(NAME, tmp_path / "home", address).stdout.strip())
    assert {file.name for file in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "config.json").read_text() == '"config.json"'


def test_what_the_cache_has_whole_needs_no_hub(tmp_path, published):
    with tiny_hub.hub(NAME, published) as address:
        first = get(NAME, tmp_path / "home", address)
    again = get(NAME, tmp_path / "home", address)
    assert again.stdout == first.stdout != ""


def test_a_half_downloaded_model_is_completed(tmp_path, published):
    with tiny_hub.hub(NAME, published) as address:
        folder = Path(get(NAME, tmp_path / "home", address).stdout.strip())
        (folder / "model.safetensors").unlink()
        get(NAME, tmp_path / "home", address)
    assert (folder / "model.safetensors").is_file()


def test_an_unknown_hub_name_says_what_to_check(tmp_path, published):
    with tiny_hub.hub(NAME, published) as address:
        failed = get("someone/other", tmp_path / "home", address)
    assert "someone/other: neither a folder" in failed.stderr
    assert "Check the name and the network" in failed.stderr


def test_shipped_and_local_models_are_folders(published):
    assert model_folder("tiny") == TINY
    assert model_folder(str(published)) == published


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"no model there \(config.json is missing\)"):
        model_folder(str(tmp_path))

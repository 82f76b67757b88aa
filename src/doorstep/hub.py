"""Where a base model's files are: the shipped one, a folder, or a name on the Hugging Face hub. Imports no torch.

What the hub's cache (``HF_HOME``) has whole is used as it is, without asking; so a model stays the same until its cache
is cleared, and needs no network.
"""

import re
from functools import partial
from pathlib import Path

from doorstep.config import TINY
from doorstep.errors import UsageError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
NOT_NEEDED = ["*/*", "consolidated*"]  # the same weights in other formats


def model_folder(name: str) -> Path:
    """Return the folder of a base model: the shipped ``tiny``, a local folder, or a model of the hub, downloaded."""
    folder = TINY if name == "tiny" else Path(name).expanduser()
    if (folder / "config.json").exists():
        return folder
    if folder.exists() or not HUB_NAME.fullmatch(name):
        raise UsageError(
            f"{name}: no model there (config.json is missing). Give 'tiny', a folder that holds a model, or a name on "
            "the Hugging Face hub such as Qwen/Qwen3-8B."
        )
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise UsageError(f"{name}: to get models from the hub, pip install 'doorstep[engine]'") from None
    get = partial(snapshot_download, name, allow_patterns=FILES, ignore_patterns=NOT_NEEDED)
    try:
        try:
            folder = Path(get(local_files_only=True))
        except LocalEntryNotFoundError:
            folder = Path(get())
    except (OSError, ValueError) as error:  # what the hub's client raises is one of these
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{name}: neither a folder, nor whole in the hub's cache, nor to be had from the hub. {reason} Check the "
            "name and the network; a gated model needs HF_TOKEN."
        ) from error
    if not (folder / "config.json").exists():
        raise UsageError(f"{name}: the hub's files have no config.json; give a model in transformers' format")
    return folder

"""The ``tinker`` command line against a real server with the shipped base, and what it downloads in PEFT."""

import gc
import json
import urllib.request
from typing import Any, NamedTuple

import pyrage
import pytest
import tinker
from click.testing import CliRunner
from peft import PeftModel
from tinker.cli.__main__ import main_cli
from transformers import AutoModelForCausalLM

from doorstep.cli.local_server import running
from doorstep.config import TINY, ServeSettings, Settings

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # what PEFT 0.21 reads
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),  # PEFT's word on our base
]

DATUM = tinker.Datum(
    model_input=tinker.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},
)


class World(NamedTuple):
    """A server of its own process, and a model of one step on it."""

    rest: Any
    model: Any

    def saved(self, name: str) -> str:
        return self.model.save_state(name).result().path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    settings = Settings(serve=ServeSettings(data=str(tmp_path_factory.mktemp("served")), threads=1))
    with running(settings) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {"BASE_URL": address.url, "API_KEY": address.key, "TELEMETRY": "0"}.items():
            patch.setenv(f"TINKER_{name}", value)
        client = tinker.ServiceClient()
        model = client.create_lora_training_client("tiny", rank=4).result()
        model.forward_backward([DATUM], "cross_entropy").result()
        model.optim_step(tinker.AdamParams(learning_rate=0.01)).result()
        yield World(tinker.RestClient(), model)
        client.close("success").result()
        gc.collect()  # the SDK leaves connections open, which complain here


def command(*arguments: str) -> str:
    """Run ``tinker``; return what it printed."""
    ended = CliRunner().invoke(main_cli, arguments, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def told(*arguments: str) -> Any:
    return json.loads(command("--format", "json", *arguments))


def test_runs_and_models_are_shown(world):
    assert [run["training_run_id"] for run in told("run", "list")["runs"]] == [world.model.model_id]
    assert told("run", "info", world.model.model_id)["lora_rank"] == 4
    assert "tiny" in command("model", "list")


def test_a_checkpoint_is_shown_shared_kept_and_deleted(world):
    path = world.saved("shown")
    command("checkpoint", "publish", path)
    command("checkpoint", "set-ttl", path, "--ttl", "7200")
    shown = told("checkpoint", "info", path)
    assert (shown["public"], shown["checkpoint_type"], shown["lora_rank"]) == (True, "training", 4)
    assert shown["expires_at"]
    command("checkpoint", "unpublish", path)
    command("checkpoint", "set-ttl", path, "--remove")
    shown = told("checkpoint", "info", path)
    assert (shown["public"], shown["expires_at"]) == (False, None)
    command("checkpoint", "delete", "--yes", path)
    listed = told("checkpoint", "list", "--run-id", world.model.model_id)["checkpoints"]
    assert path not in [one["tinker_path"] for one in listed]


def test_what_is_downloaded_is_an_adapter_for_peft(world, tmp_path):
    command("checkpoint", "download", world.saved("downloaded"), "--output", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert trained(folder)
    exports = [run.training_run_id for run in world.rest.list_training_runs().result().training_runs]
    kinds = [one.checkpoint_type for run in exports for one in world.rest.list_checkpoints(run).result().checkpoints]
    assert "external" not in kinds  # the tool takes its own export away again


def test_what_is_encrypted_is_read_by_its_recipient(world, tmp_path):
    key = pyrage.x25519.Identity.generate()
    recipients = [str(key.to_public())]
    path = world.model.save_weights_external("sealed", age_encryption_recipients=recipients).result().path
    for name, url in world.rest.get_external_weights_urls(path).result().urls.items():
        with urllib.request.urlopen(url) as response:
            (tmp_path / name.removesuffix(".age")).write_bytes(pyrage.decrypt(response.read(), [key]))
    assert trained(tmp_path)


def trained(folder):
    """Load an adapter as everybody does; tell whether its second matrices, zero at first, have moved."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY), str(folder))
    moved = [bool(tensor.any()) for name, tensor in model.state_dict().items() if "lora_B" in name]
    return bool(moved) and all(moved)


def test_a_session_is_exported_as_a_trace(world, tmp_path):
    file = tmp_path / "trace.pftrace"
    command("session", "export-trace", world.model.model_id.partition(":")[0], "--output", str(file))
    names = [event["name"] for event in json.loads(file.read_text("utf-8"))["traceEvents"]]
    assert {"forward_backward", "optim_step"} <= set(names)

"""The real tinker client against the service over HTTP."""

from pathlib import Path

import pytest
import tinker
from scripted_engine import ScriptedEngine
from tinker import types
from training_door import connected, serving

# The SDK does not close the connection over which it fetched its settings.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

PROMPT = types.ModelInput.from_ints([5, 6])
FOUR = types.SamplingParams(max_tokens=4)
STEP = types.AdamParams(learning_rate=0.1)


def datum(tokens=(1, 2, 3), **inputs):
    inputs = inputs or {"weights": [0.0, 1.0, 1.0]}
    targets = [token + 1 for token in tokens]
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs={"target_tokens": targets} | inputs
    )


@pytest.fixture
def trainer(service):
    return service.create_lora_training_client(base_model="tiny", rank=8, seed=3, train_mlp=False).result()


def test_a_training_client_knows_its_model(trainer, tmp_path):
    info = trainer.get_info()
    assert (info.model_name, info.lora_rank) == ("tiny", 8)
    assert Path(info.model_data.tokenizer_id) == tmp_path  # spelt with /./ where the SDK would cut it


def test_forward_backward_and_a_step(trainer):
    first = trainer.forward_backward([datum()], "cross_entropy")
    step = trainer.optim_step(STEP)
    assert first.result().metrics["loss:sum"] == 2.0
    assert first.result().loss_fn_outputs[0]["logprobs"].tolist() == [-1.0, -1.0, -1.0]
    assert step.result().metrics["step"] == 1
    assert trainer.forward([datum()], "cross_entropy").result().metrics["loss:sum"] == pytest.approx(1.6)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_policy_losses(trainer, loss):
    row = datum(logprobs=[0.0, -1.0, -1.0], advantages=[0.0, 1.0, 1.0])
    config = {} if loss == "importance_sampling" else {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}
    assert trainer.forward_backward([row], loss, config).result().metrics["loss:sum"] == 2.0


def test_chunks_of_one_call_come_back_in_order(trainer):
    rows = [datum((index % 900, 2)[:2], weights=[1.0, 0.0]) for index in range(2100)]
    output = trainer.forward_backward(rows, "cross_entropy").result()
    assert len(output.loss_fn_outputs) == 2100
    assert output.metrics["loss:sum"] == 2100


def test_a_custom_loss_runs_on_the_client(trainer):
    torch = pytest.importorskip("torch")

    def loss(_data, logprobs):
        return -torch.stack([row.sum() for row in logprobs]).sum(), {"rows": float(len(logprobs))}

    assert trainer.forward_backward_custom([datum()], loss).result().metrics["rows"] == 1


def test_sampling_from_the_base(service):
    sampler = service.create_sampling_client(base_model="tiny").result()
    answer = sampler.sample(PROMPT, 2, FOUR).result()
    assert [sequence.tokens for sequence in answer.sequences] == [[7, 8, 9, 10]] * 2
    assert answer.sequences[0].sequence_id != answer.sequences[1].sequence_id
    assert sampler.compute_logprobs(PROMPT).result() == [None, -1.0]


def test_a_stop_token_and_its_absence(service):
    sampler = service.create_sampling_client(base_model="tiny").result()
    (stopped,) = sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=4, stop=[8])).result().sequences
    assert (stopped.tokens, stopped.stop_reason) == ([7, 8], "stop")


def test_weights_saved_without_a_name_are_a_snapshot(trainer):
    trainer.forward_backward([datum()], "cross_entropy")
    before = trainer.save_weights_and_get_sampling_client().result()
    trainer.optim_step(STEP)
    after = trainer.save_weights_and_get_sampling_client().result()
    assert before.compute_logprobs(PROMPT).result() == [None, -1.0]
    assert after.compute_logprobs(PROMPT).result() == pytest.approx([None, -0.8])


def test_training_goes_on_from_a_saved_state(service, trainer):
    trainer.forward_backward([datum()], "cross_entropy")
    trainer.optim_step(STEP)
    path = trainer.save_state("one").result().path
    again = service.create_training_client_from_state_with_optimizer(path).result()
    assert again.get_info().lora_rank == 8
    assert again.optim_step(STEP).result().metrics["step"] == 2
    fresh = service.create_training_client_from_state(path).result()
    assert fresh.optim_step(STEP).result().metrics["step"] == 1


def test_checkpoints_are_listed_and_deleted(address, trainer):
    state = trainer.save_state("one", user_metadata={"why": "test"}).result().path
    path = trainer.save_weights_for_sampler("final").result().path
    rest = tinker.RestClient(base_url=address, api_key="tml-test")
    assert rest.list_training_runs().result().training_runs[0].last_checkpoint.user_metadata == {"why": "test"}
    assert rest.get_weights_info_by_tinker_path(path).result().train_mlp is False
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert [item.tinker_path for item in rest.list_checkpoints(trainer.model_id).result().checkpoints] == [state]


def test_the_server_says_what_it_serves(address):
    rest = tinker.RestClient(base_url=address, api_key="tml-test")
    (model,) = rest.get_server_capabilities().result().supported_models
    assert (model.model_name, model.max_context_length, model.trainable) == ("tiny", 64, True)


def test_a_sampling_client_knows_its_checkpoint_and_model(service, trainer, tmp_path):
    path = trainer.save_weights_for_sampler("final").result().path
    sampler = service.create_sampling_client(model_path=path).result()
    assert Path(sampler.get_base_model()) == tmp_path
    for _ in range(2):
        assert sampler.compute_logprobs(PROMPT).result() == [None, -1.0]


def test_what_cannot_work_is_said_at_once(service, trainer):
    with pytest.raises(tinker.NotFoundError, match=r"'nope' is not served here\. There is: tiny"):
        service.create_lora_training_client(base_model="nope").result()
    with pytest.raises(tinker.RequestFailedError, match="loss 'grpo' is not served") as caught:
        trainer.forward_backward([datum()], "grpo").result()
    assert caught.value.category.name == "User"
    with pytest.raises(tinker.RequestFailedError, match=r"datum 0, weights: shape \[2\] .* must be \[3\]"):
        trainer.forward_backward([datum(weights=[1.0, 1.0])], "cross_entropy").result()


def test_saved_weights_outlive_the_server(tmp_path):
    with serving(tmp_path, lambda: ScriptedEngine(str(tmp_path))) as url, connected(url) as service:
        trainer = service.create_lora_training_client(base_model="tiny").result()
        trainer.optim_step(STEP).result()
        state = trainer.save_state("one").result().path
        path = trainer.save_weights_for_sampler("final").result().path
    with serving(tmp_path, lambda: ScriptedEngine(str(tmp_path))) as url, connected(url) as service:
        again = service.create_training_client_from_state_with_optimizer(state).result()
        assert again.optim_step(STEP).result().metrics["step"] == 2
        sampler = service.create_sampling_client(model_path=path).result()
        assert sampler.sample(PROMPT, 1, FOUR).result().sequences[0].tokens == [7, 8, 9, 10]

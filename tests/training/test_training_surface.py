"""The rest of what the real tinker client can ask for, over HTTP: scores, recorded samples, losses, copies."""

import pickle

import pytest
import tinker
from scripted_engine import ScriptedEngine
from tinker import types
from training_door import application, connected, serving

from doorstep.config import TrainingSettings
from doorstep.errors import EngineError
from doorstep.training.app import CLIENT

# The SDK does not close the connection over which it fetched its settings.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

PROMPT = types.ModelInput.from_ints([5, 6, 7])
TWO = types.SamplingParams(max_tokens=2)


@pytest.fixture
def engine(tmp_path):
    return ScriptedEngine(str(tmp_path))


@pytest.fixture
def service(tmp_path, engine):
    with serving(tmp_path, lambda: engine) as url, connected(url) as client:
        yield client


@pytest.fixture
def trainer(service):
    return service.create_lora_training_client(base_model="tiny", rank=8).result()


@pytest.fixture
def sampler(service):
    return service.create_sampling_client(base_model="tiny").result()


def test_likeliest_tokens_of_prompt_and_samples(sampler):
    answer = sampler.sample(PROMPT, 1, TWO, topk_prompt_logprobs=2, topk_sample_logprobs=3).result()
    assert answer.topk_prompt_logprobs == [None, [(0, -1.0), (1, -1.0)], [(0, -1.0), (1, -1.0)]]
    assert answer.sequences[0].topk_logprobs == [[(0, -1.0), (1, -1.0), (2, -1.0)]] * 2
    assert answer.prompt_logprobs is None


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_of_chosen_tokens(sampler, sparse):
    torch = pytest.importorskip("torch")
    ids = torch.full((2, 4), -1)
    ids[1, 2] = 9
    tensor = types.TensorData.from_torch_sparse(ids, pad_value=-1) if sparse else types.TensorData.from_torch(ids)
    answer = sampler.sample(PROMPT, 1, TWO, target_prompt_logprobs=tensor).result()
    assert answer.target_prompt_logprobs.to_torch()[1, 2] == 9
    assert list(answer.target_prompt_logprobs.to_torch().shape) == [2, 4]


def test_alternatives_to_each_prompt_token_and_the_last_scores(sampler):
    answer = sampler.sample(PROMPT, 1, TWO, True, prompt_alt_tokens_k=2, prompt_logprobs_last_n=1).result()
    assert answer.prompt_alt_tokens.tokens.tolist() == [[10, 11], [10, 11]]
    assert answer.prompt_logprobs == [None, None, -1.0]


def test_stable_reinforce_trains_on_what_was_recorded_at_sampling(service, trainer, engine):
    sampler = trainer.save_weights_and_get_sampling_client(record_stability_info=True).result()
    (sequence,) = sampler.sample(PROMPT, 1, TWO).result().sequences
    tokens = [5, 6, 7, *sequence.tokens]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "advantages": [0.0, 0.0, 1.0, 1.0]},
    )
    name = sequence.sequence_id
    prompt, sampled = types.PromptProvenanceSpan, types.SampledProvenanceSpan
    spans = {
        "model_input": [prompt(sequence_id=name, length=3), sampled(sequence_id=name, length=1)],
        "loss_fn_inputs": [prompt(sequence_id=name, offset=1, length=2), sampled(sequence_id=name, length=2)],
    }
    trainer.forward_backward([datum.with_provenance(**spans)], "stable_reinforce").result()
    (row,), _ = engine.batches[-1]
    assert (row.inputs["logprobs"], row.inputs["sampled"]) == ([0.0, 0.0, -1.0, -1.0], [0.0, 0.0, 1.0, 1.0])


def test_a_custom_loss_runs_on_the_server(service, trainer, engine):
    def squared(logprobs, weights):
        loss = (logprobs * logprobs * weights).sum()
        return loss, {"custom/squared:sum": loss}

    loss = service.create_custom_loss(squared, {"logprobs": 1, "weights": 1}).result()
    inputs = {"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]}
    trainer.forward_backward_custom([types.Datum(model_input=PROMPT, loss_fn_inputs=inputs)], loss).result()
    (row,), sent = engine.batches[-1]
    assert (sent.name, row.inputs["weights"]) == ("custom", [0.0, 1.0, 1.0])
    assert '"squared"' in sent.graph


def test_soft_targets_keep_their_shape(trainer, engine):
    inputs = {"target_tokens": [[1, 2], [3, 4], [5, 6]], "weights": [[0.5, 0.5]] * 3}
    output = trainer.forward_backward([types.Datum(model_input=PROMPT, loss_fn_inputs=inputs)], "cross_entropy")
    assert output.result().loss_fn_outputs[0]["logprobs"].shape == [3, 2]
    (row,), _ = engine.batches[-1]
    assert (row.width, row.targets) == (2, [1, 2, 3, 4, 5, 6])


def test_copies_of_a_sampling_client_do_not_mix_up_their_samples(trainer):
    sampler = trainer.save_weights_and_get_sampling_client().result()
    copies = [sampler, *(pickle.loads(pickle.dumps(sampler)) for _ in range(2))]
    answers = [copy.sample(PROMPT, 1, TWO).result().sequences[0].sequence_id for copy in copies]
    assert len(set(answers)) == 3


def test_one_poll_for_all_samples_of_a_client(tmp_path, engine, monkeypatch):
    monkeypatch.setitem(CLIENT, "sample_use_retrieve_futures", True)
    with serving(tmp_path, lambda: engine) as url, connected(url) as service:
        sampler = service.create_sampling_client(base_model="tiny").result()
        futures = [sampler.sample(PROMPT, 1, TWO) for _ in range(30)]
        assert [future.result().sequences[0].tokens for future in futures] == [[8, 9]] * 30
        monkeypatch.setattr(engine, "sample", failing)
        with pytest.raises(tinker.RequestFailedError, match="there is no adapter"):
            sampler.sample(PROMPT, 1, TWO).result()


async def failing(*_, **__):
    raise EngineError("there is no adapter")
    yield


def test_training_the_matrices_themselves(service):
    info = service.create_lora_training_client(base_model="tiny", rank=0).result().get_info()
    assert (info.is_lora, info.lora_rank) == (False, None)


def test_a_model_is_called_as_it_was_asked_for(tmp_path, engine):
    settings = TrainingSettings(aliases={"Qwen/Qwen3-8B": "tiny", "Qwen/Other": "/nowhere"})
    with serving(tmp_path, lambda: engine, settings=settings) as url, connected(url) as service:
        trainer = service.create_lora_training_client(base_model="Qwen/Qwen3-8B").result()
        info = trainer.get_info()
        assert (info.model_name, info.model_data.model_name) == ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B")
        path = trainer.save_weights_for_sampler("one").result().path
        assert service.create_sampling_client(model_path=path).result().get_base_model() == "Qwen/Qwen3-8B"
        with pytest.raises(Exception, match="'Qwen/Other' is not served here"):
            service.create_sampling_client(base_model="Qwen/Other").result()


def test_a_client_elsewhere_compresses_what_it_sends(tmp_path, engine):
    encodings = []

    def from_far(service):
        inner = application(service)

        async def far(scope, receive, send):
            encodings.append(dict(scope["headers"]).get(b"content-encoding"))
            await inner(scope | {"client": ("192.0.2.1", 1)}, receive, send)

        return far

    with serving(tmp_path, lambda: engine, from_far) as url, connected(url) as service:
        trainer = service.create_lora_training_client(base_model="tiny").result()
        inputs = {"target_tokens": [6, 7, 8], "weights": [1.0, 1.0, 1.0]}
        datum = types.Datum(model_input=PROMPT, loss_fn_inputs=inputs)
        assert trainer.forward([datum], "cross_entropy").result().metrics["loss:sum"] == 3
    assert b"zstd" in encodings

"""The runtime for what transformers has: every family as PEFT computes it."""

from pathlib import Path

import engine_use
import pytest
import tiny_families as families
import tiny_models
import torch
from engine_use import CROSS_ENTROPY, ROWS, row, tokens
from peft import PeftModel

from doorstep.engine.api import LoraSpec, Loss, SampleParams, ScoreParams, Token
from doorstep.engine.local import LocalEngine
from doorstep.engine.modules import base
from doorstep.engine.modules.runtime import ModulesRuntime
from doorstep.engine.native.runtime import NativeRuntime
from doorstep.engine.requests import Request
from doorstep.engine.runtime import Task
from doorstep.errors import EngineError

pytestmark = [
    # PEFT asks a model whether it checkpoints gradients by the name that transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # PEFT warns of merging: only the head of a tied model is changed, as meant here.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

CPU = torch.device("cpu")
SPEC = LoraSpec(rank=3, alpha=6)
TEXT = tokens(20, seed=1)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return the folder of a family's model, written once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.write(families.make(family), tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.fixture(params=["merged", "beside"])
def form(request, monkeypatch):
    """Both ways in which an adapter is in effect, whatever the size of the model."""
    monkeypatch.setattr(base, "LARGE", {"merged": 10**9, "beside": 0}[request.param])
    return request.param


def random_adapter(runtime, spec=SPEC):
    """Return an adapter that changes something."""
    adapter = runtime.adapter(spec)
    generator = torch.Generator().manual_seed(7)
    for factors in adapter.factors:
        factors.b.normal_(std=0.1, generator=generator)
    return adapter


def in_peft(family: str, runtime, adapter, folder: Path) -> PeftModel:
    """Return the family's model with the adapter, as PEFT loads what the runtime saves."""
    runtime.save(adapter, folder / "adapter", optimizer=False)
    return PeftModel.from_pretrained(families.make(family), folder / "adapter", is_trainable=True).eval()


def train(runtime, adapter, rows=ROWS, loss=CROSS_ENTROPY, forward_only=False):
    task = Task(adapter, lambda: runtime.merged(adapter), rows, loss, forward_only)
    for _ in runtime.train([task]):
        pass
    return task.done


def sample(runtime, weights, prompt, params, n):
    """Return (id, logprob) of each token of each sample."""
    found: list[list[tuple[int, float]]] = [[] for _ in range(n)]

    def emit(events):
        for event in events:
            if isinstance(event, Token):
                found[event.index].append((event.id, event.logprob))

    sampler = runtime.sampler()
    sampler.add(weights, Request(prompt, params, n, (), runtime, emit))
    while sampler.rows:
        sampler.step()
    return found


def log_p(model, text=TEXT):
    scores = model(torch.tensor([text])).logits[0, :-1]
    return torch.log_softmax(scores, dim=-1).gather(1, torch.tensor(text[1:])[:, None]).flatten()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_saved_adapter_computes_the_same_in_peft(family, form, folder_of, tmp_path):
    runtime = ModulesRuntime(folder_of(family), family, CPU)
    adapter = random_adapter(runtime)
    peft = in_peft(family, runtime, adapter, tmp_path)
    scores = runtime.score(runtime.merged(adapter), TEXT, ScoreParams(), ())
    torch.testing.assert_close(torch.tensor(scores.logprobs[1:]), log_p(peft).detach(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_adapter_without_changes_is_the_base(family, folder_of):
    runtime = ModulesRuntime(folder_of(family), family, CPU)
    fresh = runtime.score(runtime.merged(runtime.adapter(SPEC)), TEXT, ScoreParams(), ())
    torch.testing.assert_close(
        torch.tensor(fresh.logprobs[1:]), log_p(families.make(family)).detach(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "qwen3_moe", "deepseek_v3", "qwen3_5_text"])
def test_gradients_are_those_of_peft(family, form, folder_of, tmp_path):
    runtime = ModulesRuntime(folder_of(family), family, CPU)
    adapter = random_adapter(runtime)
    peft = in_peft(family, runtime, adapter, tmp_path)
    for each in ROWS:
        scores = torch.log_softmax(peft(torch.tensor([each.tokens])).logits[0], dim=-1)
        lp = scores.gather(1, torch.tensor(each.targets)[:, None]).flatten()
        (-lp @ torch.tensor(each.inputs["weights"])).backward()
    train(runtime, adapter)
    wanted = dict(peft.named_parameters())
    for site, factors in zip(adapter.sites, adapter.views(adapter.gradient), strict=True):
        a, b = (wanted[f"base_model.model.{site.name}.lora_{x}.default.weight"].grad for x in "AB")
        if site.experts:
            a, b = a.view(factors.a.shape), b.view(site.outputs, SPEC.rank, site.experts).permute(2, 0, 1)
        for found, reference in ((factors.a, a), (factors.b, b)):
            torch.testing.assert_close(found, reference, atol=float(1e-4 * reference.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_runtimes_agree(family, folder_of):
    found = []
    for runtime in (NativeRuntime(folder_of(family), family, CPU), ModulesRuntime(folder_of(family), family, CPU)):
        adapter = random_adapter(runtime)
        done = train(runtime, adapter)
        found.append((torch.cat([*map(torch.tensor, done.logprobs)]), adapter.gradient))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_a_loss_over_whole_rows_and_one_with_several_targets(folder_of):
    runtime = ModulesRuntime(folder_of("qwen3_moe"), "moe", CPU)
    adapter = random_adapter(runtime)
    wide = engine_use.row(6, seed=1)
    wide = type(wide)(tokens=wide.tokens, targets=wide.targets * 2, width=2, inputs={"weights": [0.5] * 12})
    done = train(runtime, adapter, [wide])
    assert done.metrics["loss:sum"] == pytest.approx(-0.5 * sum(done.logprobs[0]), abs=1e-4)
    marked = row(6, seed=2)
    inputs = {name: marked.inputs[name] for name in ("logprobs", "advantages")} | {"sequence_ratio_mask": [1.0] * 6}
    marked = type(marked)(tokens=marked.tokens, targets=marked.targets, inputs=inputs)
    assert train(runtime, adapter, [marked], Loss(name="gspo")).metrics["loss:sum"] != 0


def test_forward_only_gives_the_same_numbers_and_no_gradient(folder_of):
    runtime = ModulesRuntime(folder_of("mixtral"), "mixtral", CPU)
    adapter = random_adapter(runtime)
    looked = train(runtime, adapter, forward_only=True)
    assert not adapter.gradient.any()
    assert looked == train(runtime, adapter)
    assert adapter.gradient.any()


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_5_text"])
def test_a_sample_does_not_depend_on_how_many_there_are(family, folder_of):
    runtime = ModulesRuntime(folder_of(family), family, CPU)
    weights, params = runtime.merged(random_adapter(runtime)), SampleParams(max_tokens=12, seed=5, stop=[])
    many = sample(runtime, weights, TEXT[:9], params, n=10)
    assert sample(runtime, weights, TEXT[:9], params, n=1) == many[:1]
    assert len({str(each) for each in many}) == 10


@pytest.mark.parametrize("family", families.FAMILIES)
def test_sampled_log_probabilities_are_those_of_the_text(family, form, folder_of):
    runtime = ModulesRuntime(folder_of(family), family, CPU)
    weights = runtime.merged(random_adapter(runtime))
    sampled = sample(runtime, weights, TEXT[:9], SampleParams(max_tokens=12, seed=5, stop=[]), n=2)[1]
    scores = runtime.score(weights, TEXT[:9] + [token for token, _ in sampled], ScoreParams(), ())
    torch.testing.assert_close(
        torch.tensor(scores.logprobs[9:]), torch.tensor([each for _, each in sampled]), atol=5e-5, rtol=5e-5
    )


def test_requests_end_apart_and_can_be_cancelled(folder_of):
    runtime = ModulesRuntime(folder_of("mixtral"), "mixtral", CPU)
    sampler, came = runtime.sampler(), []
    long, short = (
        Request(TEXT[:5], SampleParams(max_tokens=most, stop=[]), 2, (), runtime, came.append) for most in (50, 2)
    )
    for request in (long, short):
        sampler.add(runtime.merged(None), request)
    assert sampler.rows == 4
    sampler.step()
    assert sampler.requests() == [long]
    long.cancelled = True
    sampler.step()
    assert sampler.rows == 0


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "attn.c_attn is a Conv1D, not a linear layer"),
        ("recurrent_gemma", "temporal_block.linear_y belongs neither to attention nor to an MLP"),
        ("opt", "body and head, or a prompt and its next token, do not work apart"),
        ("bert", "beside its head it has bert, cls"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_with_the_reason(family, reason, tmp_path):
    folder = tiny_models.write(families.make(family), tmp_path)
    with pytest.raises(EngineError, match=reason):
        ModulesRuntime(folder, family, CPU)


def test_the_mlp_is_its_experts_and_what_is_beside_them_but_no_router(folder_of):
    sites = (
        ModulesRuntime(folder_of("glm4_moe"), "glm", CPU).adapter(LoraSpec(train_attn=False, train_unembed=False)).sites
    )
    assert [site.place for site in sites if "layers.1" in site.name] == [
        f"model.layers.1.mlp.{name}"
        for name in (
            "experts.gate_up_proj",
            "experts.down_proj",
            "shared_experts.gate_proj.weight",
            "shared_experts.up_proj.weight",
            "shared_experts.down_proj.weight",
        )
    ]


async def test_the_engine_trains_samples_saves_and_loads_a_model_with_experts(folder_of, tmp_path):
    engine = await LocalEngine.start(folder_of("gpt_oss"), "gpt_oss")
    await engine_use.trained(engine, "a", spec=SPEC)
    params = SampleParams(max_tokens=8, seed=1, stop=[])
    sampled = await engine_use.sample(engine, "a", TEXT[:5], params, n=2)
    await engine.save("a", str(tmp_path / "saved"), optimizer=True)
    await engine.load("b", str(tmp_path / "saved"), optimizer=True)
    assert await engine_use.sample(engine, "b", TEXT[:5], params, n=2) == sampled
    for name in ("a", "b"):
        await engine_use.train(engine, name)
    assert (await engine.score("a", TEXT)) == (await engine.score("b", TEXT))
    await engine.close()

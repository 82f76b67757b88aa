"""Whole runs against oracles: tenants beside PEFT in fp64 and plain torch; long answers beside the trainer."""

import pytest
import torch
from engine_use import all_at_once, row, samples, together, tokens, trained
from peft import PeftModel

from doorstep.config import TINY
from doorstep.engine.api import AdamParams, LoraSpec, Loss, SampleParams, TrainRow
from doorstep.engine.local import LocalEngine
from doorstep.engine.steps import optim_step

pytestmark = [
    # peft 0.21 reads a property that transformers 5.24 has renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # the adapter changes the head alone, and that is meant
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

STEPS = [
    [row(20, 1), *samples(12, [5, 1, 9], 2)],
    [row(40, 3), row(7, 4)],
    [row(31, 5), row(5, 6, prompt=0), row(33, 7)],
]
TENANTS = [
    ("cross_entropy", LoraSpec(rank=4, seed=1), AdamParams(learning_rate=1e-3, eps=1e-3)),
    ("importance_sampling", LoraSpec(rank=4, seed=2, alpha=7), AdamParams(eps=1e-4, grad_clip_norm=0.5)),
    ("ppo", LoraSpec(rank=9, seed=3), AdamParams(learning_rate=2e-3, beta1=0.8, eps=1e-3, weight_decay=0.1)),
    ("ppo", LoraSpec(rank=3, seed=4, train_mlp=False), AdamParams(eps=1e-4, weight_decay=0.3, grad_clip_norm=2)),
]


class Oracle:
    """One tenant by itself: PEFT's model in fp64, a loss as one writes it down, torch's clipping and AdamW."""

    def __init__(self, model, folder, adapter, loss, params):
        base = type(model).from_pretrained(folder).double()
        self._model = PeftModel.from_pretrained(base, adapter, is_trainable=True, autocast_adapter_dtype=False).double()
        self._loss = loss
        self._clip = params.grad_clip_norm
        self.trained = {name: part for name, part in self._model.named_parameters() if part.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )

    def step(self, rows):
        """Return the loss and the gradient's norm before the step."""
        self._optimizer.zero_grad()
        loss = sum(self._row_loss(row) for row in rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self._clip or torch.inf)
        self._optimizer.step()
        return loss.item(), norm.item()

    def _row_loss(self, row):
        scores = self._model(torch.tensor([row.tokens])).logits[0]
        lp = torch.log_softmax(scores, -1).gather(1, torch.tensor(row.targets)[:, None]).flatten()
        given = {name: torch.tensor(values, dtype=torch.float64) for name, values in row.inputs.items()}
        ratio, advantages = torch.exp(lp - given["logprobs"]), given["advantages"]
        if self._loss == "cross_entropy":
            return -(lp * given["weights"]).sum()
        if self._loss == "importance_sampling":
            return -(ratio * advantages).sum()
        return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()


def learned(runtime, spec):
    adapter = runtime.adapter(spec)
    adapter.flat.add_(torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(spec.seed)), alpha=0.02)
    return adapter


def test_tenants_of_one_batch_each_make_the_steps_of_peft_and_torch(runtime, model, folder, tmp_path):
    adapters = [learned(runtime, spec) for _, spec, _ in TENANTS]
    oracles = []
    for number, (adapter, (loss, _, params)) in enumerate(zip(adapters, TENANTS, strict=True)):
        runtime.save(adapter, tmp_path / str(number), optimizer=False)
        oracles.append(Oracle(model, folder, tmp_path / str(number), loss, params))
    for rows in STEPS:
        calls = [(adapter, rows, Loss(name=loss)) for adapter, (loss, _, _) in zip(adapters, TENANTS, strict=True)]
        results = together(runtime, calls)
        for adapter, result, oracle, (_, _, params) in zip(adapters, results, oracles, TENANTS, strict=True):
            loss, norm = oracle.step(rows)
            assert result.metrics["loss:sum"] == pytest.approx(loss, rel=2e-6, abs=1e-4)
            assert optim_step(adapter, params)["grad_norm"] == pytest.approx(norm, rel=2e-5)
    for adapter, oracle in zip(adapters, oracles, strict=True):
        assert len(oracle.trained) == 2 * len(adapter.sites)
        for site, ours in zip(adapter.sites, adapter.factors, strict=True):
            for part, found in (("lora_A", ours.a), ("lora_B", ours.b)):
                theirs = oracle.trained[f"base_model.model.{site.name}.{part}.default.weight"]
                torch.testing.assert_close(found.double(), theirs.detach(), rtol=1e-5, atol=2e-5)


async def test_long_answers_have_the_trainers_log_probabilities():
    engine = await LocalEngine.start(TINY, "base")
    for seed in (1, 2):
        await trained(engine, str(seed), spec=LoraSpec(rank=8, seed=seed))
    params = SampleParams(max_tokens=300, seed=3, stop=[])
    jobs = [(str(seed), tokens(length, length), params, 2) for seed, length in ((1, 150), (2, 9), (1, 64))]
    for (name, prompt, _, _), answers in zip(jobs, await all_at_once(engine, jobs), strict=True):
        texts = [prompt + [token for token, _ in answer] for answer in answers]
        rows = [
            TrainRow(tokens=text[:-1], targets=text[1:], inputs={"weights": [1.0] * (len(text) - 1)}) for text in texts
        ]
        result = await engine.forward_backward(name, rows, Loss(name="cross_entropy"), forward_only=True)
        for answer, logprobs in zip(answers, result.logprobs, strict=True):
            assert len(answer) == 300
            assert [logprob for _, logprob in answer] == pytest.approx(logprobs[len(prompt) - 1 :], rel=0, abs=2e-5)
    await engine.close()

"""Custom losses as the SDK traces and sends them, beside the same loss run by the SDK itself."""

import math
from contextlib import suppress

import msgspec
import pytest
import tinker
import torch
from engine_use import CROSS_ENTROPY, RATE, ROWS
from hypothesis import given
from hypothesis import strategies as st
from tinker.lib.public_interfaces.custom_loss import encode_graph, run_loss_handle, trace_loss
from torch.nn import functional as F

from doorstep.engine import graph, program
from doorstep.engine.api import LoraSpec, Loss, TrainRow
from doorstep.engine.losses import bind, means
from doorstep.errors import EngineError

LENGTHS = (5, 1, 3)


def clipped(logprobs, advantages, old):
    ratio = torch.exp(logprobs - old)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()
    return loss, {"custom/ratio:mean": ratio.detach().mean(), "custom/count:sum": (advantages != 0).sum()}


def masked(logprobs, advantages, scale):
    chosen = logprobs[advantages > 0]
    loss = -(chosen * scale).sum() / math.sqrt(logprobs.shape[0]) + 0.1 * (logprobs**2).sum()
    return loss, {}


def preference(logprobs, advantages):
    total = (logprobs * advantages).sum()
    loss = -F.logsigmoid(total) + F.softplus(total, beta=2.0) + F.relu(total) + abs(total)
    loss += logprobs[..., -1] + logprobs[:1].mean(dim=0, keepdim=True)[0]
    return loss, {"custom/win:mean": (total > 0).float()}


def pairwise(logprobs, advantages):
    apart = logprobs[:, None] - logprobs[None, :]
    wins = (advantages[:, None] > advantages[None, :]).to(torch.float32)
    return -(F.logsigmoid(apart) * wins).sum() + logprobs.max(dim=0).values, {}


def distilled(logprobs, teacher):
    share = torch.softmax(teacher, dim=-1)
    loss = (share * (torch.where(share > 0, share.log(), -math.inf) - logprobs)).sum()
    return loss, {"custom/peak:mean": torch.stack([share.max(), share.mean()]).max()}


def made(function, **ranks):
    """Return a function as the SDK has it, and as it is sent."""
    handle = trace_loss(function, {"logprobs": 1} | ranks, "s")
    sent = {"name": handle.name, "inputs": handle.inputs, "graph": encode_graph(handle)}
    return handle, msgspec.json.encode(sent, enc_hook=lambda each: each.model_dump()).decode()


def data(ranks, width):
    """Return data for the SDK, the same rows for the engine, and log-probabilities."""
    generator = torch.Generator().manual_seed(3)
    datums, rows, logprobs = [], [], []
    for length in LENGTHS:
        shapes = [(), (length,), (length, width)]
        inputs = {
            name: torch.randn(shapes[rank], generator=generator) for name, rank in ranks.items() if name != "logprobs"
        }
        targets = torch.zeros(shapes[ranks["logprobs"]], dtype=torch.long)
        datums.append(
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints([1] * length),
                loss_fn_inputs={"target_tokens": tinker.TensorData.from_torch(targets), **inputs},
            )
        )
        flat = {name: values.flatten().tolist() for name, values in inputs.items()}
        size = width if ranks["logprobs"] == 2 else 1
        rows.append(TrainRow(tokens=[1] * length, targets=targets.flatten().tolist(), inputs=flat, width=size))
        logprobs.append(-torch.rand(targets.shape, generator=generator))
    return datums, rows, logprobs


@pytest.mark.parametrize(
    ("function", "ranks", "width"),
    [
        (clipped, {"logprobs": 1, "advantages": 1, "old": 1}, 1),
        (masked, {"logprobs": 1, "advantages": 1, "scale": 0}, 1),
        (preference, {"logprobs": 1, "advantages": 1}, 1),
        (pairwise, {"logprobs": 1, "advantages": 1}, 1),
        (distilled, {"logprobs": 2, "teacher": 2}, 4),
        (distilled, {"logprobs": 2, "teacher": 2}, 1),
    ],
)
def test_a_loss_here_is_the_loss_at_the_client(function, ranks, width):
    datums, rows, logprobs = data(ranks, width)
    handle, text = made(function, **ranks)
    leaves = [values.clone().requires_grad_() for values in logprobs]
    expected, metrics = run_loss_handle(handle, datums, leaves)
    expected.backward()
    bound = bind(Loss(name="custom", graph=text))
    lp = torch.cat(logprobs)
    value = bound(lp if width > 1 else lp.flatten(), bound.gather(rows))
    torch.testing.assert_close(value.loss.sum(), expected.detach())
    torch.testing.assert_close(value.gradient.flatten(), torch.cat([leaf.grad.flatten() for leaf in leaves]))
    assert means(value.metrics, len(rows)) == pytest.approx(metrics)


def step(target, *args, op="call_function", **kwargs):
    return {"op": op, "name": "x", "target": target, "args": [*args], "kwargs": kwargs}


LP, ADVANTAGES = {"ref": "logprobs"}, {"ref": "advantages"}
TOTAL = step("sum", LP, op="call_method") | {"name": "total"}


def text(*steps, output="total", metrics=None, **changes):
    """Return a graph of some steps, before the sum of the log-probabilities."""
    inputs = [{"name": name, "rank": 1} for name in ("logprobs", "advantages")]
    heads = [{"op": "placeholder", "name": each["name"], "target": each["name"]} for each in inputs]
    result = {"tuple": [{"ref": output}, {"dict": metrics or {}}]}
    last = {"op": "output", "name": "output", "target": "output", "args": [result]}
    made = {"name": "f", "inputs": inputs, "graph": {"format": 1, "nodes": [*heads, *steps, TOTAL, last]}}
    return msgspec.json.encode(made | changes).decode()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (text(step("torch.load", "file")), "f: node x: torch.load is not among the operations"),
        (text(step("os.system", "true")), "os.system is not among"),
        (text(step("builtins.eval", "1")), "builtins.eval is not among"),
        (text(step("torch.rand", 3)), "torch.rand is not among"),
        (text(step("item", LP, op="call_method")), "method item is not among"),
        (text(step("__class__", LP, op="call_method")), "method __class__ is not among"),
        (text(step("add_", LP, 1, op="call_method")), "method add_ is not among"),
        (text(step("getattr", LP, "__class__")), "attribute .* may not be read; there are T, "),
        (text(step("weight", op="get_attr")), "get_attr weight is not allowed"),
        (text(step("linear", op="call_module")), "call_module linear is not allowed"),
        (text(step("torch.norm", LP, p="nuc")), "the nuclear norm is not among"),
        (text(step("torch.exp", LP, out=LP)), "torch.exp may not write into a tensor"),
        (text(step("torch.nn.functional.relu", LP, inplace=True)), "may not write into a tensor"),
        (text(step("torch.exp", {"ref": "later"})), "argument ref 'later' is not allowed"),
        (text(step("torch.exp", {"code": "1"})), "argument code '1' is not allowed"),
        (text(step("torch.zeros_like", LP, dtype={"dtype": "load"})), "argument dtype 'load' is not allowed"),
        (text(step("torch.exp", {"ref": "x", "tuple": []})), "must have one key"),
        (text(step("torch.cat", [[[[[[[[[LP]]]]]]]]])), "nest more than 8 deep"),
        (text(step("torch.exp", LP), step("torch.exp", LP)), "two nodes x"),
        (text(*[step("torch.exp", LP)] * 1000), "1004 nodes; at most 1000"),
        (text(output="nothing"), "its loss must be a tensor that a node computes"),
        (text(metrics={"loss:sum": LP}), "metric 'loss:sum' must be named custom/NAME:sum"),
        (text(metrics={"custom/a:sum": 1}), "its custom/a:sum must be a tensor"),
        (text(inputs=[{"name": "logprobs", "rank": 0}]), "its inputs must be logprobs, of rank 1 or 2"),
        (
            text(inputs=[{"name": name, "rank": 1} for name in ("logprobs", "b")]),
            "placeholders must be its inputs, in order",
        ),
        (text(inputs=[{"name": "logprobs", "rank": 3}]), "custom loss: Invalid enum value 3"),
        ("[]", "custom loss: Expected `object`"),
        ("x" * (graph.MAX_TEXT + 1), "characters; at most"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(sent, why):
    with pytest.raises(EngineError, match=why) as caught:
        graph.read(sent)
    assert caught.value.category == "user"


plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["x", "logprobs", "nuc", "sum"])
kinds = st.sampled_from(["ref", "tuple", "slice", "dict", "ellipsis", "float", "dtype", "device", "layout", "code"])
args = st.recursive(
    plain, lambda each: st.lists(each, max_size=3) | st.dictionaries(kinds, each, max_size=2), max_leaves=6
)
targets = st.sampled_from(
    ["getattr", "torch.cat", "torch.exp", "torch.zeros", "operator.getitem", "operator.mul", "math.exp"]
)


@given(targets, st.lists(args, max_size=3), st.dictionaries(st.sampled_from(["dim", "dtype", "out"]), args, max_size=2))
def test_whatever_is_sent_is_computed_or_refused(target, positional, named):
    with suppress(EngineError):
        assert torch.equal(run(text(step(target, *positional, **named))).gradient, torch.ones(4))


def test_nesting_without_end_is_refused():
    with pytest.raises(EngineError, match="custom loss: maximum recursion"):
        graph.read(text(step("torch.exp", "DEEP")).replace('"DEEP"', "[" * 100_000))


def run(sent, length=4):
    rows = [TrainRow(tokens=[1] * length, targets=[1] * length, inputs={"advantages": [1.0] * length})]
    bound = bind(Loss(name="custom", graph=sent))
    return bound(torch.zeros(length), bound.gather(rows))


X = {"ref": "x"}
NINE = step("operator.pow", 9, 9)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (text(step("torch.zeros", 1 << 40)), r"node x \(torch.zeros\): a row of 4 positions takes more than"),
        (text(step("repeat", LP, 1 << 40, op="call_method")), r"\(repeat\): a row of 4 positions takes more than"),
        (text(step("torch.linspace", 0, 1, 1 << 40)), "takes more than 33554432 numbers"),
        (text(step("torch.zeros", 1 << 40, 0)), "takes more than 33554432 numbers"),
        (text(step("torch.ones", 1000, 1000), step("torch.mm", X, X) | {"name": "y"}), "node y .* takes more than"),
        (text(step("to", LP, "cuda:7", op="call_method")), r"node x \(to\): "),
        (text(step("operator.mul", [1], 1 << 40)), r"\(operator.mul\): takes numbers and tensors, not a list, a int"),
        (text(step("operator.mul", "ab", 1 << 40)), "takes numbers and tensors, not a str"),
        (text(NINE, step("operator.pow", X, X) | {"name": "y"}), "node y .* math range error"),
        (text(step("operator.mul", 1 << 52, 1 << 52)), "the result is too large"),
        (text(step("torch.matmul", LP, [1])), r"node x \(torch.matmul\)"),
        (text(step("math.exp", LP)), "takes numbers; use torch.exp for a tensor"),
        (text(step("operator.getitem", LP, 9)), r"node x \(operator.getitem\): .*out of bounds"),
        (text(step("sum", 3, op="call_method")), "sum is a method of tensors, not of a int"),
        (text(step("operator.iadd", LP, 1)), r"node x \(operator.iadd\): a leaf Variable"),
        (text(step("torch.exp", LP), output="x"), r"its loss must be a scalar tensor, not a tensor of shape \(4,\)"),
        (text(step("torch.sum", ADVANTAGES), output="x"), "its loss does not depend on logprobs"),
        (text(metrics={"custom/a:sum": LP}), r"its metric custom/a:sum must be a scalar tensor, not a tensor of shape"),
    ],
)
def test_a_step_that_fails_is_named_and_bounded(sent, why):
    with pytest.raises(EngineError, match=why):
        run(sent)


def test_the_sizes_of_one_row_do_not_pass_for_those_of_another(monkeypatch):
    monkeypatch.setattr(program, "MAX_WORK", 500)
    sent = text(step("torch.outer", LP, LP))
    bound = bind(Loss(name="custom", graph=sent))
    rows = [TrainRow(tokens=[1] * n, targets=[1] * n, inputs={"advantages": [1.0] * n}) for n in (5, 5, 30)]
    with pytest.raises(EngineError, match="a row of 30 positions"):
        bound(torch.zeros(40), bound.gather(rows))


def test_sizes_that_values_decide_are_looked_at_in_each_row(monkeypatch):
    monkeypatch.setattr(program, "MAX_WORK", 500)
    chosen = step("operator.getitem", LP, {"ref": "m"}) | {"name": "c"}
    steps = step("operator.gt", ADVANTAGES, 0) | {"name": "m"}, chosen, step("torch.outer", {"ref": "c"}, {"ref": "c"})
    bound = bind(Loss(name="custom", graph=text(*steps)))
    rows = [TrainRow(tokens=[1] * 20, targets=[1] * 20, inputs={"advantages": [a] * 20}) for a in (0.0, 1.0)]
    with pytest.raises(EngineError, match=r"\(torch.outer\): a row of 20 positions"):
        bound(torch.zeros(40), bound.gather(rows))


def test_every_operation_on_the_list_is_there():
    from doorstep.engine.program import Program

    for target in graph.CALLS:
        Program(graph.read(text(step(target))))
    assert [name for name in graph.METHODS if not hasattr(torch.Tensor, name)] == []


def weighted(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/mean:mean": loss, "custom/sum:sum": loss}


async def test_an_adapter_trains_on_a_custom_loss_as_on_the_one_it_writes_out(engine):
    _, sent = made(weighted, weights=1)
    steps, losses = [], []
    for name, loss in (("a", CROSS_ENTROPY), ("b", Loss(name="custom", graph=sent))):
        await engine.create_adapter(name, LoraSpec(rank=2))
        losses.append((await engine.forward_backward(name, ROWS, loss)).metrics)
        steps.append(await engine.optim_step(name, RATE))
    assert losses[1]["loss:sum"] == pytest.approx(losses[0]["loss:sum"], rel=1e-6)
    assert losses[1]["custom/sum:sum"] == pytest.approx(losses[1]["loss:sum"], rel=1e-6)
    assert losses[1]["custom/mean:mean"] * len(ROWS) == pytest.approx(losses[1]["loss:sum"], rel=1e-6)
    assert steps[1]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-5)


async def test_a_custom_loss_that_fails_leaves_the_adapter_alone(engine):
    wrong = text(step("operator.getitem", LP, 9))
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=r"custom loss f: node x .* index 9 is out of bounds") as caught:
        await engine.forward_backward("a", ROWS, Loss(name="custom", graph=wrong))
    assert caught.value.category == "user"
    assert (await engine.optim_step("a", RATE))["grad_norm"] == 0

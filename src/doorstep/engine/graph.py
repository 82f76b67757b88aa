"""A custom loss as plain data: its nodes, what they may call, how much they may do. No tensors; ``program`` runs it.

The Tinker SDK traces a user's loss with ``torch.fx`` and sends the nodes. Nothing of it is code: a node names one of
the operations listed here, or the loss is refused by that name. Left out on purpose: what draws random numbers (a
result may not depend on what was computed before), what writes into a tensor that it is given, what leaves torch, what
makes a tensor whose size its values decide without a bound, and what decomposes matrices.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Literal

import msgspec

from doorstep.errors import EngineError

MAX_NODES = 1000
MAX_TEXT = 1 << 20  # characters of the whole graph
MAX_DEPTH = 8  # of lists in an argument
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``logprobs``, or an input of the rows: rank 0 is one number, 1 one a position, 2 one a target."""

    name: str
    rank: Literal[0, 1, 2]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step, as torch.fx records it; an argument that is no plain value is an object of one key, as ``ref``."""

    op: str
    name: str
    target: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Nodes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps in order."""

    nodes: list[Node]
    format: Literal[1] = 1


class Graph(msgspec.Struct, frozen=True):
    """A custom loss: its inputs, ``logprobs`` first, and its steps."""

    name: str
    inputs: list[Input]
    graph: Nodes

    @property
    def nodes(self) -> list[Node]:
        """Return the steps in order."""
        return self.graph.nodes


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOTH = _words("""
    abs absolute acos acosh add addcdiv addcmul all allclose amax amin aminmax any argmax argmin argsort asin asinh
    atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil chunk clamp clamp_max clamp_min clip copysign
    cos cosh cummax cummin cumprod cumsum deg2rad detach diag diagonal diff digamma dist div divide dot eq erf erfc
    erfinv exp exp2 expm1 fix flatten flip floor floor_divide fmax fmin fmod frac gather ge greater greater_equal gt
    heaviside hypot index_select isclose isfinite isinf isnan kthvalue le lerp less less_equal lgamma log log10 log1p
    log2 logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp lt
    masked_fill masked_select matmul max maximum mean median min minimum mm movedim mul multiply mv nan_to_num
    nanmean nansum narrow ne neg negative nonzero norm not_equal numel outer permute positive pow prod quantile
    ravel reciprocal relu remainder reshape roll round rsqrt scatter scatter_add select sgn sigmoid sign sin sinc
    sinh softmax log_softmax sort split sqrt square squeeze std sub subtract sum swapaxes t take_along_dim tan tanh
    tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var where xlogy
""")
_FUNCTIONS = _words("""
    arange broadcast_tensors cat column_stack concat concatenate cosine_similarity full hstack linspace
    logspace meshgrid ones stack std_mean var_mean vstack zeros zeros_like
    ones_like full_like is_floating_point
""")
_METHODS = _words("""
    bool contiguous dim double expand expand_as float int long ndimension new_full new_ones new_zeros nelement repeat
    reshape_as size to type_as view view_as
""")
_FUNCTIONAL = _words("""
    binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity elu gelu hardtanh huber_loss kl_div l1_loss
    leaky_relu log_softmax margin_ranking_loss mse_loss normalize pad relu relu6 selu sigmoid silu smooth_l1_loss
    softmax softmin softplus softsign tanh threshold
""")
_OPERATORS = _words("""
    abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imul ior ipow isub itruediv invert le lt matmul mod mul
    ne neg or_ pos pow sub truediv xor
""")
_MATH = _words(
    "acos asin atan atan2 ceil cos cosh erf erfc exp expm1 fabs floor log log10 log1p log2 sin sinh sqrt tan tanh"
)

# What a node may call, by the name that the SDK gives it, and where torch keeps that.
CALLS: dict[str, str] = {
    **{f"torch.{name}": f"torch.{name}" for name in _BOTH | _FUNCTIONS},
    **{f"torch.nn.functional.{name}": f"torch.nn.functional.{name}" for name in _FUNCTIONAL},
    **{
        f"torch._C._nn.{name}": f"torch.nn.functional.{name}" for name in ("gelu", "softplus", "hardtanh", "leaky_relu")
    },
    "torch._C._nn.log_sigmoid": "torch.nn.functional.logsigmoid",
    "torch._C._linalg.linalg_vector_norm": "torch.linalg.vector_norm",
    **{
        f"torch._C._special.special_{name}": f"torch.special.{name}"
        for name in (
            "digamma",
            "entr",
            "erf",
            "erfc",
            "expit",
            "expm1",
            "gammaln",
            "log1p",
            "logsumexp",
            "xlog1py",
            "xlogy",
        )
    },
    **{f"operator.{name}": f"operator.{name}" for name in _OPERATORS},
    **{f"math.{name}": f"math.{name}" for name in _MATH},
}
METHODS = _BOTH | _METHODS
ATTRIBUTES = _words("T mT shape ndim dtype device values indices min max")
DTYPES = _words("float32 float float64 double float16 half bfloat16 int64 long int32 int int16 int8 uint8 bool")
_CONSTANTS: dict[str, Collection[str]] = {
    "dtype": DTYPES,
    "device": _words("cpu cuda cuda:0"),  # whichever is named, a loss runs where the model is
    "layout": _words("strided"),
    "memory_format": _words("contiguous_format"),
}
_FLOATS = _words("inf -inf nan")
_GETATTR = ("getattr", "builtins.getattr")


@lru_cache(maxsize=64)
def read(text: str) -> Graph:
    """Read and check a graph, as JSON of its name, inputs and graph; EngineError names what is not allowed."""
    if len(text) > MAX_TEXT:
        raise EngineError(f"custom loss: the graph has {len(text)} characters; at most {MAX_TEXT} are taken")
    try:
        found = msgspec.json.decode(text, type=Graph)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineError(f"custom loss: {error}") from None
    try:
        _check(found)
    except _Refused as refused:
        raise EngineError(f"custom loss {found.name}: {refused}") from None
    return found


def calls_attribute(node: Node) -> bool:
    """Tell whether a node reads an attribute."""
    return node.op == "call_function" and node.target in _GETATTR


class _Refused(Exception):
    """Why a graph is not taken."""


def _check(graph: Graph) -> None:
    _check_inputs(graph.inputs)
    if not 2 <= len(graph.nodes) <= MAX_NODES:
        raise _Refused(f"it has {len(graph.nodes)} nodes; at most {MAX_NODES} are taken")
    names = [each.name for each in graph.inputs]
    head, steps, last = graph.nodes[: len(names)], graph.nodes[len(names) : -1], graph.nodes[-1]
    if [(node.op, node.target) for node in head] != [("placeholder", name) for name in names]:
        raise _Refused(f"its placeholders must be its inputs, in order: {', '.join(names)}")
    if last.op != "output":
        raise _Refused("its last node must be the output")
    known = {node.name for node in head}
    for node in steps:
        try:
            _check_call(node)
            for arg in (*node.args, *node.kwargs.values()):
                _check_arg(arg, known, MAX_DEPTH)
        except _Refused as refused:
            raise _Refused(f"node {node.name}: {refused}") from None
        if node.name in known:
            raise _Refused(f"there are two nodes {node.name}")
        known.add(node.name)
    _check_output(last, known)


def _check_inputs(inputs: list[Input]) -> None:
    names = [each.name for each in inputs]
    if not names or names[0] != "logprobs" or inputs[0].rank == 0 or len(names) > 16 or len(set(names)) < len(names):
        raise _Refused("its inputs must be logprobs, of rank 1 or 2, and at most 15 others, each once")
    if wrong := [name for name in names if not _INPUT.fullmatch(name)]:
        raise _Refused(f"input {wrong[0]!r} must be a lowercase name of letters, digits and underscores")


def _check_call(node: Node) -> None:
    if calls_attribute(node):
        if len(node.args) != 2 or not _among(node.args[1], ATTRIBUTES) or node.kwargs:
            raise _Refused(f"attribute {node.args[1:]} may not be read; there are {', '.join(sorted(ATTRIBUTES))}")
    elif node.op == "call_method":
        if node.target not in METHODS:
            raise _Refused(f"method {node.target} is not among the operations of a custom loss here")
    elif node.op != "call_function":
        raise _Refused(f"{node.op} {node.target} is not allowed; only functions and methods of tensors are")
    elif node.target not in CALLS:
        raise _Refused(f"{node.target} is not among the operations of a custom loss here")
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        raise _Refused(f"{node.target} may not write into a tensor")


def _check_arg(arg: object, known: set[str], depth: int) -> None:
    if depth == 0:
        raise _Refused(f"its arguments nest more than {MAX_DEPTH} deep")
    if arg == "nuc":
        raise _Refused("the nuclear norm is not among the operations of a custom loss here")
    if isinstance(arg, list):
        for each in arg:
            _check_arg(each, known, depth - 1)
    elif isinstance(arg, dict):
        if len(arg) != 1:
            raise _Refused("an argument that is an object must have one key")
        ((kind, value),) = arg.items()
        if not _allowed(kind, value, known, depth):
            raise _Refused(f"argument {kind} {value!r} is not allowed")


def _allowed(kind: str, value: Any, known: set[str], depth: int) -> bool:
    if kind in ("tuple", "slice"):
        _check_arg(value, known, depth)
        return isinstance(value, list) and (kind == "tuple" or len(value) == 3)
    if kind == "ref":
        return _among(value, known)
    if kind == "float":
        return _among(value, _FLOATS)
    return kind == "ellipsis" or _among(value, _CONSTANTS.get(kind, frozenset()))


def _among(value: object, names: Collection[str]) -> bool:
    return isinstance(value, str) and value in names


def _check_output(node: Node, known: set[str]) -> None:
    """Check the output: the loss and named metrics, each a node."""
    match node.args:
        case [{"tuple": [{"ref": loss}, {"dict": dict(metrics)}]}] | [[{"ref": loss}, {"dict": dict(metrics)}]]:
            pass
        case _:
            raise _Refused("its output must be (loss, metrics), the loss a tensor and the metrics a dict of tensors")
    for name, value in (("loss", {"ref": loss}), *metrics.items()):
        if not isinstance(value, dict) or set(value) != {"ref"} or not _among(value["ref"], known):
            raise _Refused(f"its {name} must be a tensor that a node computes")
    if wrong := [name for name in metrics if not _METRIC.fullmatch(name)]:
        raise _Refused(f"metric {wrong[0]!r} must be named custom/NAME:sum or custom/NAME:mean, in lowercase")

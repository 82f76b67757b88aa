"""A base model as ``transformers`` has it: loading a folder, its body and its head, and what can be said about it.

Owns the frozen module. Its body gives hidden states, its head scores from them; ``changes`` says how an adapter is in
effect, so that none ever changes the module. Tested on a CPU only: CUDA, and bf16 with it, was not run.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from doorstep.config import weights_digest
from doorstep.engine.adapter import Adapter
from doorstep.engine.api import Image, ModelInfo
from doorstep.engine.modules.changes import Beside, Changes, Fitting, Merged, Merging, Part
from doorstep.engine.modules.images import Images, Placed
from doorstep.engine.modules.sites import Sites
from doorstep.errors import EngineError

LARGE = 200_000_000  # parameters of which no second copy is made for an adapter
CONTEXT = 32_768  # tokens, of families that set no bound
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of scores, on average, between ways to compute them


class Base:
    """A loaded model. ``ends`` are its end-of-text tokens."""

    def __init__(self, folder: Path, name: str, device: torch.device, nf4: bool = False) -> None:
        model = load_model(folder, device, nf4)
        body = _body_name(model)
        self.device = device
        self.sites = Sites(model, getattr(model, body))
        self.model = model
        self._body, self._head = _parts(model, body)
        self._check_parts()
        self._images = Images.of(folder, model, self._body.module)
        self.info = _info(folder, name, model, self._images is not None)
        self.ends = _ends(model)
        self.quantised: bool = getattr(model, "is_quantized", False)
        # In bf16 a change below 1/512 of a number that it is merged into rounds away.
        beside = self.info.parameters > LARGE or self.quantised or model.dtype != torch.float32
        self._fitting = Fitting(model, self.sites) if beside else None

    def changes(self, adapter: Adapter | Merging | None) -> Changes:
        """Return what an adapter is now; None: the base itself."""
        if adapter is None:
            return Merged({}, self.sites)
        if self._fitting and isinstance(adapter, Adapter):
            return Beside.of(adapter, self._fitting)
        return Merged.of(adapter, self.parameters(), self.sites)

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name, tied ones by each of theirs."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    def hidden(self, changes: Changes, tokens: Tensor, **more: Any) -> Tensor:
        """Return the last hidden states of rows of tokens, (B, T, D)."""
        given = {"input_ids": tokens, "use_cache": False, **more}
        hidden: Tensor = changes.call(self._body, given).last_hidden_state
        return hidden

    def read(self, changes: Changes, tokens: Tensor, **more: Any) -> tuple[Tensor, Any]:
        """Return also what the family keeps of the tokens, to go on from: a cache, changed by each ``step``."""
        output = changes.call(self._body, {"input_ids": tokens, "use_cache": True, **more})
        return output.last_hidden_state, output.cache

    def step(self, changes: Changes, tokens: Tensor, cache: Any, position: int) -> Tensor:
        """Return the scores after one more token of each row of a cache; a row's do not depend on other rows."""
        positions = torch.full_like(tokens, position)
        given = {"input_ids": tokens, "position_ids": positions, "cache": cache, "use_cache": True}
        with self._row_by_row():
            hidden = changes.call(self._body, given).last_hidden_state
        return self.logits(changes, hidden[:, -1])

    def logits(self, changes: Changes, hidden: Tensor) -> Tensor:
        """Return the scores of every vocabulary entry at hidden states: (P, D) to (P, V)."""
        logits: Tensor = changes.call(self._head, {"inputs_embeds": hidden[None], "use_cache": False}).logits
        return logits[0].float()

    def place(self, tokens: list[int], images: Sequence[Image]) -> Placed:
        """Return a text as the body gets it, with its images if there are any."""
        if images:
            return self.reader().place(tokens, images)
        return Placed(torch.tensor([tokens], device=self.device), {}, 0)

    def reader(self) -> Images:
        """Return what reads images; EngineError when the model takes none."""
        if self._images is None:
            raise EngineError(f"{self.info.name} takes no images")
        return self._images

    @contextmanager
    def _row_by_row(self) -> Iterator[None]:
        """Compute experts for each row apart, where else rows that go to one expert share a product."""
        config = self.model.config.get_text_config()
        usual = config._experts_implementation
        config._experts_implementation = "batched_mm"
        try:
            yield
        finally:
            config._experts_implementation = usual

    def _check_parts(self) -> None:
        """Refuse a model that computes otherwise in parts: body and head, prompt and one token more."""
        tokens = torch.arange(1, 5, device=self.device)[None]
        base = Merged({}, self.sites)
        try:
            with torch.no_grad():
                whole = self.model(input_ids=tokens, use_cache=False).logits[0].float()
                hidden, cache = self.read(base, tokens[:, :-1])
                cache.reorder_cache(torch.zeros(2, dtype=torch.long, device=self.device))
                last = self.step(base, tokens[:, -1:].expand(2, 1), cache, position=3)
                parts = torch.cat([self.logits(base, hidden[0]), last[:1]])
            apart = (whole - parts).abs().mean() / whole.abs().mean()
            same = bool(apart <= TOLERANCE[hidden.dtype])
        except (TypeError, AttributeError, ValueError):
            same = False
        if not same:
            raise _refusal(self.model, "body and head, or a prompt and its next token, do not work apart")


class _Passed(nn.Module):
    """Stands where the body was, for the head's use: the hidden states are there already."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._body = [body]  # in a list it is no child of this module

    def forward(self, *_inputs: None, inputs_embeds: Tensor, **_: Any) -> "_Output":
        return _Output(inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        """Return what a head takes from its body beside the hidden states."""
        return getattr(self.__dict__["_body"][0], name)


class _Output:
    """What a body returns: hidden states, and None for whatever else a family looks for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


def load_model(folder: Path, device: torch.device, nf4: bool = False) -> Any:
    """Load a folder, frozen; EngineError says what is wrong with it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise EngineError(f"{folder} holds no model: it must have config.json and *.safetensors")
    logging.disable_progress_bar()
    # On a GPU in the precision that it was published in; on a CPU, where that is slower, in fp32.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        config = AutoConfig.from_pretrained(folder)
        auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        if nf4:
            quantised = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_use_double_quant=True,
            )
            model = auto.from_pretrained(folder, dtype=dtype, quantization_config=quantised, device_map={"": device})
        elif hasattr(config, "quantization_config"):
            model = auto.from_pretrained(folder, dtype=dtype, device_map={"": device})
        else:
            model = auto.from_pretrained(folder, dtype=dtype).to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise EngineError(f"{folder} cannot be loaded as a language model: {error}") from error
    model.eval().requires_grad_(False)
    if getattr(model, "is_quantized", False):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.train()  # on a CPU bitsandbytes else takes kernels that know no gradient
    return model


def _body_name(model: Any) -> str:
    """Return the name of what stands beside the head."""
    names: list[str] = [name for name, child in model.named_children() if child is not model.get_output_embeddings()]
    if len(names) != 1:
        raise _refusal(model, f"beside its head it has {', '.join(names)}")
    return names[0]


def _parts(model: Any, body: str) -> tuple[Part, Part]:
    """Return body and head: the head is the model with nothing where the body was."""
    start = body + "."
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    head = copy.copy(model)
    head._modules = model._modules | {body: _Passed(getattr(model, body))}
    return (
        Part(getattr(model, body), {name: name.removeprefix(start) for name in names if name.startswith(start)}),
        Part(head, {name: name for name in names if not name.startswith(start)}),
    )


def _refusal(model: Any, why: str) -> EngineError:
    return EngineError(f"model type {model.config.model_type!r} is not served here: {why}")


def _info(folder: Path, name: str, model: Any, vision: bool) -> ModelInfo:
    config = model.config.get_text_config()
    tokenizer = folder / "tokenizer.json"
    return ModelInfo(
        name=name,
        folder=str(folder),
        digest=weights_digest(folder),
        tokenizer_digest=hashlib.sha256(tokenizer.read_bytes() if tokenizer.is_file() else b"").hexdigest(),
        parameters=model.num_parameters(),
        vocabulary=config.vocab_size,
        max_context=getattr(config, "max_position_embeddings", None) or CONTEXT,
        vision=vision,
    )


def _ends(model: Any) -> list[list[int]]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return [[end] for end in (ends if isinstance(ends, list) else [ends])]

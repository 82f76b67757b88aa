"""Tiny random vision-language models in folders with what reads their images, and images for them."""

from io import BytesIO
from pathlib import Path
from random import Random

import tiny_models
import torch
from PIL import Image
from tiny_families import COMMON
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    PreTrainedModel,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)

IMAGE = 90  # the id that stands for a part of an image
SIZE = 32  # of Gemma's images


def qwen3_vl() -> PreTrainedModel:
    """Patches with a grid; positions in three dimensions."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.2,
    }
    ids = {"image_token_id": IMAGE, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    torch.manual_seed(4)
    config = Qwen3VLConfig(text_config=COMMON | {"rope_parameters": rope}, vision_config=vision, **ids)
    return AutoModelForImageTextToText.from_config(config).eval()


def gemma3() -> PreTrainedModel:
    """Images of one size, each 4 tokens that see each other."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    ids = {"image_token_index": IMAGE, "boi_token_index": 91, "eoi_token_index": 92}
    torch.manual_seed(5)
    text = COMMON | {"sliding_window": 8, "query_pre_attn_scalar": 16}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **ids)
    return AutoModelForImageTextToText.from_config(config).eval()


READERS = {
    "qwen3_vl": Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 4 * 64, "longest_edge": 64 * 64}
    ),
    "gemma3": Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE}),
}


def write(family: str, folder: Path) -> Path:
    """Save a model with the settings of what reads its images."""
    tiny_models.write(globals()[family](), folder)
    READERS[family].save_pretrained(folder)
    return folder


def picture(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """Return an image of noise as a file."""
    image, file = Image.frombytes("RGB", (width, height), Random(seed).randbytes(3 * width * height)), BytesIO()
    image.save(file, kind)
    return file.getvalue()

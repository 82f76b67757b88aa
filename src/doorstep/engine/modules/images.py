"""Images among the tokens of a vision-language model: reading them, counting their tokens, and what the model gets.

Knows the two ways that models of the Qwen-VL and Gemma 3 kind have: patches with a grid and positions in three
dimensions, and pictures of one size, each a fixed number of tokens.
"""

import inspect
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doorstep.engine.api import Image
from doorstep.errors import EngineError

MAX_PIXELS = 1 << 26  # of one image; a few bytes can say that they are a picture of any size


class Placed(NamedTuple):
    """Tokens with images in them: what the body gets, and how far positions after them are from the count of tokens."""

    tokens: Tensor  # (1, T)
    inputs: dict[str, Tensor]
    shift: int


class Images:
    """What reads images for a model."""

    def __init__(self, processor: Any, config: Any, body: Any) -> None:
        self._processor = processor
        self._config = config
        self._body = body
        self._takes = inspect.signature(type(body).forward).parameters
        self._token: int = self._config.image_token_id

    @classmethod
    def of(cls, folder: Path, model: Any, body: Any) -> "Images | None":
        """Return what reads images for a model; None when it takes none, or has no settings for it."""
        places = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
        if not hasattr(model.config, "image_token_id") or not any(place.is_file() for place in places):
            return None
        from transformers import AutoImageProcessor

        try:
            return cls(AutoImageProcessor.from_pretrained(folder), model.config, body)
        except (ImportError, OSError, ValueError) as error:
            raise EngineError(
                f"{folder}: what reads images cannot be loaded; pip install 'doorstep[vision]'. {error}"
            ) from error

    def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        return [self._count(self._read([_open(index, data)]), 1)[0] for index, data in enumerate(images)]

    def place(self, tokens: list[int], images: Sequence[Image]) -> Placed:
        """Put images where they stand among tokens; EngineError when one does not fit there."""
        inputs = self._read([_open(index, image.data) for index, image in enumerate(images)])
        counts = self._count(inputs, len(images))
        kinds = torch.zeros(1, len(tokens), dtype=torch.long)
        for index, (image, count) in enumerate(zip(images, counts, strict=True)):
            if image.tokens != count:
                raise EngineError(f"image {index} takes {count} tokens, not {image.tokens}; ask for its count first")
            kinds[0, image.at : image.at + count] = 1
        ids = torch.tensor([tokens])
        if (ids[kinds == 0] == self._token).any():
            raise EngineError(f"the id {self._token} stands for a part of an image; it cannot be among other tokens")
        ids = torch.where(kinds == 1, self._token, ids).to(self._body.device)
        kinds = kinds.to(self._body.device)
        inputs |= {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in self._takes}
        if not hasattr(self._body, "get_rope_index"):
            return Placed(ids, inputs, 0)
        positions, shift = self._body.get_rope_index(ids, kinds, inputs["image_grid_thw"])
        return Placed(ids, inputs | {"position_ids": positions}, int(shift))

    def _read(self, images: Sequence[Any]) -> dict[str, Tensor]:
        read = self._processor(images=images, return_tensors="pt")
        return {name: value.to(self._body.device) for name, value in read.items() if name in self._takes}

    def _count(self, inputs: dict[str, Tensor], images: int) -> list[int]:
        if "image_grid_thw" in inputs:
            merged = self._config.vision_config.spatial_merge_size**2
            return [int(count) // merged for count in inputs["image_grid_thw"].prod(dim=1)]
        if hasattr(self._config, "mm_tokens_per_image"):
            return [self._config.mm_tokens_per_image] * images
        raise EngineError(f"images of model type {self._config.model_type!r} are not served here")


def _open(index: int, data: bytes) -> Any:
    import PIL.Image
    import PIL.ImageOps

    try:
        image = PIL.Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise EngineError(f"image {index} has {image.width} x {image.height} pixels; make it smaller")
        return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except PIL.UnidentifiedImageError:
        raise EngineError(f"image {index} is no PNG, JPEG or WebP") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise EngineError(f"image {index} cannot be read: {error}") from error

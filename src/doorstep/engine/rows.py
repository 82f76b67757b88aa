"""What rows a loss and a model can train on; checked before anything is computed. No tensors."""

from collections.abc import Sequence

from doorstep.engine import kinds
from doorstep.engine.api import Image, Loss, ModelInfo, TrainRow
from doorstep.errors import EngineError

MAX_TARGETS = 1_000_000  # of a call: they travel as lists, which take a hundred bytes each on the way


def check_rows(rows: list[TrainRow], loss: Loss, info: ModelInfo) -> None:
    """Raise an EngineError that names the first row and field that cannot be trained on."""
    known = kinds.fields(loss)
    if not rows:
        raise EngineError("there are no rows to train on; give at least one")
    if (total := sum(len(row.targets) for row in rows)) > MAX_TARGETS:
        raise EngineError(f"the call has {total} targets; one takes {MAX_TARGETS}, send several")
    for index, row in enumerate(rows):
        if problem := _shape(row, info) or kinds.problem(row, loss, known) or _vocabulary(row, info):
            raise EngineError(f"row {index}: {problem}")


def _shape(row: TrainRow, info: ModelInfo) -> str | None:
    if not 1 <= len(row.tokens) <= info.max_context:
        return f"tokens has {len(row.tokens)} entries; {info.name} takes 1 to {info.max_context}"
    return _images(row.images, row.tokens, info)


def check_images(images: Sequence[Image], tokens: list[int], info: ModelInfo) -> None:
    """Raise an EngineError that names the first image that does not lie among the tokens."""
    if problem := _images(images, tokens, info):
        raise EngineError(problem)


def _images(images: Sequence[Image], tokens: list[int], info: ModelInfo) -> str | None:
    if images and not info.vision:
        return f"there are images; {info.name} takes none"
    end = 0
    for number, image in enumerate(images):
        if image.tokens < 1 or image.at < end or image.at + image.tokens > len(tokens):
            place = f"at {image.at}, {image.tokens} tokens"
            return f"image {number} ({place}) does not lie behind the one before it, within the {len(tokens)} tokens"
        end = image.at + image.tokens
    return None


def _vocabulary(row: TrainRow, info: ModelInfo) -> str | None:
    for field, ids in (("tokens", row.tokens), ("targets", row.targets)):
        if min(ids) < 0 or max(ids) >= info.vocabulary:
            wrong = next(each for each in ids if not 0 <= each < info.vocabulary)
            return f"{field} has the id {wrong}, outside the vocabulary of {info.vocabulary}"
    return None

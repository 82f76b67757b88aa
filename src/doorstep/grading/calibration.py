"""Calibration: from the model's own confidence to the share that is really right (isotonic regression).

Pool-adjacent-violators after Ayer et al., 1955; as used for classifiers by Zadrozny and Elkan, KDD 2002.
"""

import itertools
from collections.abc import Sequence

import msgspec


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a rising curve: at raw confidence ``raw[i]`` and above, ``right[i]`` of the answers were right."""

    raw: list[float]
    right: list[float]
    n: int

    def probability(self, confidence: float | None) -> float | None:
        """Return the calibrated chance of being right; below the lowest step it is 0."""
        if confidence is None:
            return None
        value = 0.0
        for raw, right in zip(self.raw, self.right, strict=True):
            if confidence < raw:
                break
            value = max(value, right)  # the caution of a small top block must not read as a fall
        return value


def fit(confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
    """Fit on graded answers that were not trained on. Each block counts one more wrong answer than it saw
    (the rule of succession's caution), so that three lucky answers do not read as certainty.
    """
    blocks: list[tuple[float, int, int]] = []  # lowest confidence, number right, size
    pairs = sorted(zip(confidences, right, strict=True))
    for confidence, answers in itertools.groupby(pairs, key=lambda pair: pair[0]):
        same = [good for _, good in answers]
        blocks.append((confidence, sum(same), len(same)))
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            _, total, size = blocks.pop()
            lowest, before, count = blocks.pop()
            blocks.append((lowest, before + total, count + size))
    return Calibration(
        raw=[low for low, _, _ in blocks],
        right=[total / (size + 1) for _, total, size in blocks],
        n=len(confidences),
    )

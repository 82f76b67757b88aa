"""Small exact statistics of paired comparisons, in plain Python so that a decision recomputes anywhere, bit for bit.

Randomness comes from ``random.Random(seed).random()``, the one sequence that Python promises never to change.
"""

import math
import random
from collections.abc import Sequence

Z_95 = 1.959963984540054  # 97.5 % point of the normal distribution


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of a share (Wilson, JASA 22, 1927): honest at small ``n`` and at 0 or 1.

    Fractions may stand for successes: the interval is then a little too wide, never too narrow.
    """
    if n <= 0:
        raise ValueError("an interval needs at least one observation")
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends the exact bound is 0 or 1; rounding would miss it by 1e-17.
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def mcnemar_p(wins: int, losses: int) -> float:
    """Return the exact one-sided p-value of McNemar's test (Psychometrika 12, 1947): P(Binomial(w+l, ½) ≥ w)."""
    n = wins + losses
    ways = term = math.comb(n, wins)
    for k in range(wins, n):
        term = term * (n - k) // (k + 1)
        ways += term
    return ways / (1 << n)


def sign_flip_p(differences: Sequence[float], rounds: int, seed: int) -> float:
    """Return the one-sided p-value of the paired permutation test (Fisher's sign flips; Phipson & Smyth 2010).

    Under "no effect" each difference is as likely with either sign. Counting the observed arrangement too keeps the
    p-value above 0 and the test exact at any number of rounds.
    """
    rng = random.Random(seed)
    sizes = [abs(value) for value in differences if value]
    observed = math.fsum(differences)
    slack = 1e-12 * (1 + math.fsum(sizes))  # sums of the same numbers in another order count as equal
    reached = 1
    for _ in range(rounds):
        flipped = math.fsum(size if rng.random() < 0.5 else -size for size in sizes)
        reached += flipped >= observed - slack
    return reached / (rounds + 1)


def bootstrap_interval(
    clusters: Sequence[tuple[float, int]], rounds: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of a mean over clusters given as (sum, count) (Efron & Tibshirani 1993, ch. 13).

    Whole clusters are drawn, for near-duplicates are not independent.
    """
    rng, size = random.Random(seed), len(clusters)
    means = []
    for _ in range(rounds):
        drawn = [clusters[int(rng.random() * size)] for _ in range(size)]
        means.append(math.fsum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    tail = (1 - level) / 2
    return means[int(tail * (rounds - 1))], means[math.ceil((1 - tail) * (rounds - 1))]

"""How rows are laid out for training, in integers: rows that begin alike share their beginning.

The samples of one prompt are one packed row: the prompt once, then each sample's own part, which sees the prompt and
itself alone. That is the same mathematics as row by row, with a fraction of the positions.
"""

from itertools import takewhile
from typing import NamedTuple

MAX_PACKED = 1024  # positions; attention's cost grows with the square


class Packed(NamedTuple):
    """Rows, by index, that share their first ``prefix`` tokens."""

    rows: list[int]
    prefix: int
    length: int


def pack(rows: list[list[int]]) -> list[Packed]:
    """Group rows of tokens by their beginnings, shortest group first; a function of the rows and their order alone."""
    groups: list[Packed] = []
    for index in sorted(range(len(rows)), key=lambda index: rows[index]):
        alone = Packed([index], len(rows[index]), len(rows[index]))
        joined = _join(groups[-1], alone, rows) if groups else None
        if joined:
            groups[-1] = joined
        else:
            groups.append(alone)
    return sorted(groups, key=lambda group: group.length)


def batches(groups: list[Packed], tokens: int) -> list[list[Packed]]:
    """Cut groups into batches of at most ``tokens`` (or of one group)."""
    found: list[list[Packed]] = [[]]
    for group in groups:
        if found[-1] and sum(each.length for each in found[-1]) + group.length > tokens:
            found.append([])
        found[-1].append(group)
    return found


def _join(group: Packed, row: Packed, rows: list[list[int]]) -> Packed | None:
    """Return the group with a row added, where what they share is at least half of what the group shared."""
    pairs = zip(rows[group.rows[0]][: group.prefix], rows[row.rows[0]], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    together = group.rows + row.rows
    length = shared + sum(len(rows[index]) - shared for index in together)
    if 2 * shared < group.prefix or length > MAX_PACKED:
        return None
    return Packed(together, shared, length)

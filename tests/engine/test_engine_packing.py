"""Rows that begin alike are trained as one packed row: the same result as one at a time."""

import pytest
import torch
from engine_use import CROSS_ENTROPY, row, samples, trained

from doorstep.engine.native.packing import MAX_PACKED, Packed, batches, pack


def test_samples_of_a_prompt_share_it_and_strangers_do_not():
    rows = [[1, 2, 3, 4, 5], [9, 8, 7], [1, 2, 3, 4, 6, 7], [1, 2, 3, 4]]
    assert pack(rows) == [Packed([1], 3, 3), Packed([3, 0, 2], 4, 7)]


def test_the_same_row_twice_costs_its_length_once():
    assert pack([[1, 2, 3], [1, 2, 3]]) == [Packed([0, 1], 3, 3)]


def test_a_group_does_not_outgrow_its_bound():
    groups = pack([[1] * 300 + [2 + index] * 200 for index in range(8)])
    assert sorted(index for each in groups for index in each.rows) == list(range(8))
    assert MAX_PACKED / 2 < max(each.length for each in groups) <= MAX_PACKED


def test_batches_keep_to_their_tokens():
    groups = [Packed([index], length, length) for index, length in enumerate((3, 4, 5, 6, 40))]
    assert [[each.length for each in batch] for batch in batches(groups, 12)] == [[3, 4, 5], [6], [40]]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_packed_rows_train_as_rows_alone_do(engine, seed):
    rows = samples(20, [5, 1, 9, 3], seed) + samples(11, [4, 4], seed + 10) + [row(8, 77)]
    assert len(pack([each.tokens for each in rows])) == 3
    await trained(engine, "a")
    together = await engine.forward_backward("a", rows, CROSS_ENTROPY, forward_only=True)
    alone = [(await engine.forward_backward("a", [each], CROSS_ENTROPY, forward_only=True)) for each in rows]
    for packed, single in zip(together.logprobs, alone, strict=True):
        torch.testing.assert_close(torch.tensor(packed), torch.tensor(single.logprobs[0]), rtol=0, atol=2e-5)

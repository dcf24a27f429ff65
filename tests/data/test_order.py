"""The order of rows: each epoch visits every row once, and a seed means the same order."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from foreword.data.order import batches, steps_per_epoch

CASES = st.tuples(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 2**31))


@given(CASES)
def test_every_row_once_per_epoch(case) -> None:
    lengths, size, seed = case
    steps = steps_per_epoch(len(lengths), size)
    for epoch in range(2):
        chosen = list(islice(batches(lengths, size, seed, start=epoch * steps), steps))
        assert sorted(row for batch in chosen for row in batch) == list(range(len(lengths)))
        assert max(len(batch) for batch in chosen) <= size


@given(CASES, st.integers(0, 60))
def test_any_start_continues_the_same_order(case, start) -> None:
    lengths, size, seed = case
    whole = list(islice(batches(lengths, size, seed), start + 5))
    assert list(islice(batches(lengths, size, seed, start=start), 5)) == whole[start:]


def test_seeds_and_epochs_differ_and_lengths_are_grouped() -> None:
    lengths = [10, 200] * 64
    one, other = (list(islice(batches(lengths, 8, seed), 16)) for seed in (0, 1))
    assert one != other
    second = list(islice(batches(lengths, 8, 0, start=16), 16))
    assert one != second
    padding = sum(max(lengths[row] for row in batch) * len(batch) for batch in one) / sum(lengths)
    assert padding < 1.1  # at random it would be about 1.9
    mixed = list(islice(batches(lengths, 8, 0, window=1), 16))
    assert sorted(row for batch in mixed for row in batch) == list(range(128))
    assert all(len({lengths[row] for row in batch}) == 2 for batch in mixed)

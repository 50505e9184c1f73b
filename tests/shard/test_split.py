from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamshard.errors import UsageError
from streamshard.shard.split import hash_bounds, key_hash


def test_the_hash_of_a_key_is_the_same_for_ever() -> None:
    assert key_hash("000001") == 0x48E40E368F65E83E
    assert key_hash("000001", salt=1) == 0xA9ECFDA3236A0EF4
    assert key_hash("caf\udce9") == 0xEF456FEE55E80480


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.floats(0.01, 1))
def test_bounds_lie_end_to_end_and_are_as_long_as_their_fractions(
    weights: list[int], total: float
) -> None:
    fractions = {f"{n}": total * weight / sum(weights) for n, weight in enumerate(weights)}
    end = 0
    for name, (begin, after) in hash_bounds(fractions).items():
        assert begin == end
        assert after - begin == pytest.approx(fractions[name] * 2**64, rel=1e-6)
        end = after
    assert end <= 2**64


def test_fractions_out_of_their_range_are_refused() -> None:
    for fractions in ({"a": 0.0}, {"a": -0.1}, {"a": 0.6, "b": 0.6}, {"a": 1.1}):
        with pytest.raises(UsageError, match="each above 0, together at most 1"):
            hash_bounds(fractions)

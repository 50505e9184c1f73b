from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamshard.pack.windows import WINDOW, Numbered

Place = tuple[int, int]  # unit and row there


class Units:
    """Units of some lengths, and which are opened."""

    def __init__(self, lengths: Sequence[int], seed: int | None) -> None:
        self.opened: list[int] = []
        self._lengths = lengths
        self.inputs = Numbered(lengths, seed, self._open)

    def _open(self, unit: int) -> list[Place]:
        self.opened.append(unit)
        return [(unit, row) for row in range(self._lengths[unit])]


LENGTHS = st.lists(st.integers(0, 7), max_size=12)
SEEDS = st.none() | st.integers(0, 3)


@given(LENGTHS, SEEDS)
def test_every_row_of_every_unit_comes_once(lengths: list[int], seed: int | None) -> None:
    units = Units(lengths, seed)
    found = list(units.inputs)
    places = [(unit, row) for unit, length in enumerate(lengths) for row in range(length)]
    assert sorted(found) == places
    assert len(units.inputs) == len(places)
    assert sorted(units.opened) == sorted({*units.opened}), "no unit is opened twice"
    if seed is None:
        assert found == places


@given(LENGTHS, SEEDS)
def test_keys_are_those_of_the_inputs_and_open_nothing(
    lengths: list[int], seed: int | None
) -> None:
    units = Units(lengths, seed)
    keys = list(units.inputs.keys())
    assert units.opened == []
    numbers = {place: number for number, place in enumerate(sorted(units.inputs))}
    assert keys == [units.inputs.key(numbers[place]) for place in units.inputs]


@given(LENGTHS, SEEDS, st.integers(0, 90))
def test_what_comes_after_a_place_opens_no_window_before(
    lengths: list[int], seed: int | None, place: int
) -> None:
    units = Units(lengths, seed)
    expected = list(units.inputs)[place:]
    before, units.opened = units.opened, []
    assert list(units.inputs.after(place)) == expected
    assert units.opened == before[len(before) - len(units.opened) :]
    if expected:
        rows, needed = 0, list(before)
        while rows + sum(lengths[unit] for unit in needed[:WINDOW]) <= place:
            rows, needed = rows + sum(lengths[unit] for unit in needed[:WINDOW]), needed[WINDOW:]
        assert units.opened == needed
    else:
        assert units.opened == []


@pytest.mark.parametrize("seed", range(20))
def test_rows_mix_within_a_few_units_and_units_over_all(seed: int) -> None:
    units = Units([50] * 40, seed)
    found = [unit for unit, _ in units.inputs]
    begins = [found[at : at + WINDOW * 50] for at in range(0, len(found), WINDOW * 50)]
    assert all(len({*window}) == WINDOW for window in begins)
    assert all(len({*window[:50]}) == WINDOW for window in begins), "mixed from the start"
    assert found != sorted(found)

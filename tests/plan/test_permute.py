from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.plan.permute import U64, key_of, permute, unpermute
from tests.plan.draw import array

raw_keys = st.integers(0, 2**64 - 1)


def permutation(size: int, key: int) -> list[int]:
    places: list[int] = permute(np.arange(size), array([size]), np.array([key], np.uint64)).tolist()
    return places


def permutations(size: int, keys: U64) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(keys, size): row k is the permutation of keys[k]."""
    places = np.tile(np.arange(size), len(keys))
    return permute(places, array([size]), np.repeat(keys, size)).reshape(len(keys), size)


def unevenness(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]], freedom: int) -> float:
    """How many standard deviations a chi-square of equally likely counts lies from its mean.

    By the cube root of Wilson and Hilferty (1931), which is close to normal for any freedom.
    """
    expected = counts.sum() / counts.size
    chi_square = float(((counts - expected) ** 2).sum()) / expected
    mean, variance = 1 - 2 / (9 * freedom), 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - mean) / math.sqrt(variance))


@settings(deadline=None)
@given(size=st.integers(1, 10_000), key=raw_keys)
def test_every_place_is_hit_once(size: int, key: int) -> None:
    assert sorted(permutation(size, key)) == list(range(size))


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_every_small_size_is_permuted(key: int) -> None:
    for size in range(1, 130):
        assert sorted(permutation(size, key)) == list(range(size)), size


@settings(deadline=None)
@given(size=st.integers(2**20, 2**60), key=raw_keys, data=st.data())
def test_places_of_a_huge_size_stay_apart_and_inside(
    size: int, key: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, size - 2000))
    places = first + np.arange(2000)
    moved = permute(places, array([size]), np.array([key], np.uint64))
    assert len(set(moved.tolist())) == len(places)
    assert moved.min() >= 0
    assert moved.max() < size


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), raw_keys, st.integers(0)), min_size=1, max_size=50))
def test_a_mix_of_sizes_and_keys_equals_one_at_a_time(asked: list[tuple[int, int, int]]) -> None:
    sizes = [size for size, _, _ in asked]
    keys = [key for _, key, _ in asked]
    places = [number % size for size, _, number in asked]
    together = permute(array(places), array(sizes), np.array(keys, np.uint64))
    alone = [
        permutation(size, key)[place] for size, key, place in zip(sizes, keys, places, strict=True)
    ]
    assert together.tolist() == alone


def test_asking_changes_neither_places_nor_sizes() -> None:
    places, sizes = np.arange(50), np.full(50, 50)
    permute(places, sizes, key_of(1))
    assert places.tolist() == list(range(50))
    assert sizes.tolist() == [50] * 50


def test_no_places_give_no_places() -> None:
    assert permute(array([]), array([7]), key_of(1)).tolist() == []


def test_ten_thousand_keys_give_ten_thousand_permutations() -> None:
    drawn = permutations(100, key_of(5, np.arange(10_000)))
    assert len(np.unique(drawn, axis=0)) == 10_000


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), unique_by=tuple))
def test_different_words_give_different_keys(words: list[list[int]]) -> None:
    keys = {int(key_of(*each)[0]) for each in words}
    assert len(keys) == len(words)


def test_keys_of_small_neighbouring_words_are_all_different() -> None:
    words = np.arange(60)
    keys = key_of(words[:, None, None], words[:, None], words)
    assert len(np.unique(keys)) == 60**3


def test_a_key_depends_on_the_order_of_its_words() -> None:
    assert key_of(1, 2).tolist() != key_of(2, 1).tolist()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_permutations_of_a_few_things_are_equally_likely(size: int) -> None:
    drawn = permutations(size, key_of(11, np.arange(200 * math.factorial(size))))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert abs(unevenness(counts, len(counts) - 1)) < 4


def test_no_permutation_of_five_things_is_rare() -> None:
    drawn = permutations(5, key_of(11, np.arange(120_000)))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    # A network of a few rounds over so few cells is not even, but it must not be far from it.
    assert len(counts) == 120
    assert counts.min() > 600
    assert counts.max() < 1400


@pytest.mark.parametrize("size", [6, 7, 16, 50, 100])
def test_every_thing_is_equally_likely_at_every_place(size: int) -> None:
    drawn = permutations(size, key_of(12, np.arange(100 * size)))
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (np.arange(size), drawn), 1)
    assert abs(unevenness(counts, (size - 1) ** 2)) < 4


@pytest.mark.parametrize("size", [7, 50, 100, 1023])
def test_no_displacement_is_preferred(size: int) -> None:
    drawn = permutations(size, key_of(13, np.arange(2000)))
    moved_by = (drawn - np.arange(size)) % size
    counts = np.bincount(moved_by.ravel(), minlength=size)
    assert abs(unevenness(counts, size - 1)) < 4


@pytest.mark.parametrize("size", [7, 50, 100, 1023])
def test_no_distance_between_neighbours_is_preferred(size: int) -> None:
    drawn = permutations(size, key_of(14, np.arange(2000)))
    # Neighbours never land on one place, so distance 0 is left out.
    apart = np.diff(drawn, axis=1) % size
    counts = np.bincount(apart.ravel(), minlength=size)[1:]
    assert abs(unevenness(counts, size - 2)) < 4


@pytest.mark.parametrize("size", [50, 100, 1023])
def test_permutations_of_neighbouring_keys_are_unrelated(size: int) -> None:
    drawn = permutations(size, key_of(15, np.arange(2000)))
    apart = np.diff(drawn, axis=0) % size
    counts = np.bincount(apart.ravel(), minlength=size)
    assert abs(unevenness(counts, size - 1)) < 4


def test_a_place_and_where_it_goes_are_uncorrelated() -> None:
    size, keys = 1000, 500
    drawn = permutations(size, key_of(16, np.arange(keys)))
    places = np.tile(np.arange(size), keys)
    correlation = float(np.corrcoef(places, drawn.ravel())[0, 1])
    assert abs(correlation) < 4 / math.sqrt(size * keys)


@settings(deadline=None)
@given(size=st.one_of(st.integers(1, 70), st.integers(1, 2**60)), key=raw_keys, data=st.data())
def test_what_was_moved_can_be_moved_back(size: int, key: int, data: st.DataObject) -> None:
    places = array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    sizes, keys = array([size]), np.array([key], np.uint64)
    assert unpermute(permute(places, sizes, keys), sizes, keys).tolist() == places.tolist()
    assert permute(unpermute(places, sizes, keys), sizes, keys).tolist() == places.tolist()

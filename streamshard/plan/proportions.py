"""Fixed proportions, dealt out as evenly as whole numbers allow.

A pattern of nested floors: a place of it, however far on, is found by a few divisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Number

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.order import Ints

_UNITS = 2**30  # what proportions that are no small whole numbers are rounded to


@dataclass(frozen=True)
class Proportions:
    """How often each source comes, and in which pattern.

    Of the first n places of the pattern the first source (the one of the greatest weight) has
    floor(n * w / W), W the weights' sum; what it leaves is dealt among the others likewise. So a
    run of n places holds n * w / W of each of several sources to less than `deviation`.

    Attributes:
        weights: Whole numbers above 0, one a source, together at most 2**31.

    >>> pattern = Proportions((2, 1))
    >>> pattern.pick(np.arange(6))[0].tolist()
    [1, 0, 0, 1, 0, 0]
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 1 or sum(self.weights) > 2**31:
            raise UsageError(f"weights {self.weights}; each above 0, together at most 2**31")

    @classmethod
    def of(cls, weights: Sequence[float]) -> Proportions:
        """Proportions of any numbers above 0, exact or to one part in 2**30.

        They are exact where the numbers, as decimals, have a common measure that is not finer.

        >>> Proportions.of([0.7, 0.2, 0.1]).weights
        (7, 2, 1)
        """
        try:
            exact = [Fraction(str(weight)) for weight in weights if isinstance(weight, Number)]
        except ValueError:
            exact = []  # truth values, or not finite ones
        exact = exact if len(exact) == len(weights) else []
        if not exact or min(exact) <= 0:
            raise UsageError(f"weights {[*weights]}; each must be a number above 0")
        unit = Fraction(
            np.gcd.reduce([share.numerator for share in exact], dtype=object),
            np.lcm.reduce([share.denominator for share in exact], dtype=object),
        )
        # Over their common measure: the smallest whole numbers in these proportions.
        whole = [int(share / unit) for share in exact]
        if sum(whole) > _UNITS:
            total = sum(exact)
            whole = [max(1, round(share / total * _UNITS)) for share in exact]
        return cls(tuple(whole))

    @property
    def total(self) -> int:
        """The weights' sum."""
        return sum(self.weights)

    @property
    def deviation(self) -> Fraction:
        """What no source's count in any run of the pattern differs by from its share, or more.

        Each floor adds less than one, and a source further down has its part of what those above
        it are off by. At most 1 for two sources, and 2 + 1/2 + … + 1/(sources - 2) for more, since
        the greatest weights come first: the k-th is off by less than 1 + w_k (1/r_1 + … + 1/r_k-1),
        r_j being what the j-th leaves, which is more than (k - j) w_k. None for one source.
        """
        worst, above, left = Fraction(0), Fraction(0), self.total
        for source in self._descending[:-1]:
            part = Fraction(self.weights[source], left)
            worst = max(worst, 1 + part * above)
            above = 1 + (1 - part) * above
            left -= self.weights[source]
        return max(worst, above)

    @property
    def _descending(self) -> list[int]:
        return sorted(range(len(self.weights)), key=lambda source: -self.weights[source])

    def before(self, source: int, places: Ints) -> Ints:
        """How often a source comes before each place of the pattern, (n,) int64."""
        rest, left = places, self.total
        for other in self._descending:
            count = _part(rest, self.weights[other], left)
            if other == source:
                return count
            rest, left = rest - count, left - self.weights[other]
        raise IndexError(f"source {source} of {len(self.weights)}")

    def pick(self, places: Ints, begins: Ints | None = None) -> tuple[Ints, Ints]:
        """The source at each place of the pattern, and how often it came since a place before.

        Args:
            places: (n,) int64, 0 and up.
            begins: (n,) int64, at most `places`: from where to count; 0 if None.

        Returns:
            Two (n,) int64 arrays: sources by number, and their occurrences in [begin, place).
        """
        rest, before = places, np.zeros_like(places) if begins is None else begins
        sources, counts = np.empty_like(places), np.empty_like(places)
        todo, left = np.arange(len(places)), self.total
        for source in self._descending:
            weight = self.weights[source]
            here, since = _part(rest, weight, left), _part(before, weight, left)
            chosen = _part(rest + 1, weight, left) > here
            sources[todo[chosen]] = source
            counts[todo[chosen]] = (here - since)[chosen]
            rest, before = (rest - here)[~chosen], (before - since)[~chosen]
            todo, left = todo[~chosen], left - weight
        return sources, counts


def _part(length: Ints, weight: int, total: int) -> Ints:
    """floor(length * weight / total), for any length and a total of up to 2**31."""
    quotient, rest = np.divmod(length, total)
    part: Ints = quotient * weight + rest * weight // total
    return part

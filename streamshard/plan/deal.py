"""Who receives what: the shares of all ranks, read from the other end.

`Share` says which positions one rank takes in a step; `Deal` says which worker takes a position.
With `pad` some positions are taken twice, so it speaks of places in what is dealt: place p is
position p modulo the samples of the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.order import Ints
from streamshard.plan.share import Share, Tail, World

_MAX_WORKERS = 2**22  # of all ranks, so that a number for each is little memory


@dataclass(frozen=True)
class Deal:
    """The division of a whole epoch among all workers of all ranks.

    A worker's number is its rank times the workers of a rank, plus its number there.

    Attributes:
        total: Samples in the epoch.
        world_size: Ranks.
        workers: Of each rank, at least 1: the loader's own process counts as one.
        batch_size: Samples per rank and step.
        tail: What becomes of an incomplete last global batch, as `Share` has it.
    """

    total: int
    world_size: int
    workers: int
    batch_size: int
    tail: Tail

    def __post_init__(self) -> None:
        if self.workers < 1 or self.all_workers > _MAX_WORKERS:
            raise UsageError(
                f"{self.world_size} ranks of {self.workers} workers; at least one each and at most "
                f"{_MAX_WORKERS} in all can be told apart"
            )
        Share(self.total, 0, World(0, self.world_size), self.batch_size, self.tail)  # checks

    @property
    def all_workers(self) -> int:
        """Workers of all ranks."""
        return self.world_size * self.workers

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take in a full step."""
        return self.world_size * self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the epoch, the same on every rank."""
        return Share(self.total, 0, World(0, self.world_size), self.batch_size, self.tail).steps

    @property
    def dealt(self) -> int:
        """Samples that all workers receive in the epoch, `pad`'s repeats among them."""
        return self.total if self.tail == "exact" else self.steps * self.global_batch

    @property
    def full_steps(self) -> tuple[int, int]:
        """How many full steps there are, and their samples; else 1 and those of the only one."""
        steps = self.total // self.global_batch
        return (steps, self.global_batch) if steps else (1, self.total)

    @property
    def batches(self) -> tuple[int, int]:
        """How many full batches there are, and their samples; else 1 and those of rank 0's."""
        steps, samples = self.full_steps
        if samples == self.global_batch:
            return steps * self.world_size, self.batch_size
        even = -(-samples // self.world_size)
        return 1, even if self.tail == "exact" else min(samples, self.batch_size)

    @property
    def dropped(self) -> int:
        """Samples that nobody receives."""
        return max(self.total - self.dealt, 0)

    @property
    def padded(self) -> int:
        """Repeats that fill the last global batch."""
        return max(self.dealt - self.total, 0)

    def workers_of(self, places: Ints) -> Ints:
        """The worker that receives each place of what is dealt.

        Args:
            places: (n,) int64, 0 <= place < dealt.

        Returns:
            (n,) int64, 0 <= worker < all_workers.
        """
        step, seat = np.divmod(places, self.global_batch)
        rank = seat // self.batch_size
        # Under `exact` a last step with fewer samples is split evenly, the first ranks one more.
        each, more = divmod(self.dealt % self.global_batch, self.world_size)
        if each or more:
            last = step == self.steps - 1
            end_of_more = more * (each + 1)
            late = more + (seat[last] - end_of_more) // max(each, 1)
            rank[last] = np.where(seat[last] < end_of_more, seat[last] // (each + 1), late)
        workers: Ints = rank * self.workers + step % self.workers
        return workers

    def batches_from(self, begin: int) -> Ints:
        """Where each batch begins in what is dealt, from `begin` on, the first place of a step."""
        whole = self.dealt // self.global_batch * self.global_batch
        full = np.arange(begin, whole, self.batch_size, dtype=np.int64)
        each, more = divmod(self.dealt - whole, self.world_size)
        ranks = np.arange(min(self.world_size, self.dealt - whole), dtype=np.int64)
        return np.concatenate([full, whole + ranks * each + np.minimum(ranks, more)])

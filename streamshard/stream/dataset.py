"""The dataset that training code sees: finds its world and its worker, makes the batch of a step.

This is the only place that asks for rank and worker; everywhere else the world is a value.
"""

from __future__ import annotations

import dataclasses
import logging
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from streamshard.errors import SampleError, UsageError
from streamshard.plan.budget import Budget
from streamshard.plan.order import DatasetPlan, Shuffle
from streamshard.plan.share import Tail, World
from streamshard.stream.assemble import Assembler, OnError
from streamshard.stream.block import Block, plain_memory, shared_memory
from streamshard.stream.budget import BudgetCourse, BudgetPlan
from streamshard.stream.course import Course, Plan
from streamshard.stream.mixture import Mixture, mixture_fingerprint, sources_of
from streamshard.stream.reader import Shards
from streamshard.stream.source import Decoder, Source, Transform, common_classes
from streamshard.stream.steps import Steps, refuse_collation
from streamshard.stream.view import View, Where, hash_ranges, selected

logger = logging.getLogger("streamshard")


def detect_world() -> World:
    """The data-parallel world: an initialised torch.distributed, else torchrun's environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return World()


class ShardDataset(IterableDataset[Any]):
    """Streams the batches of a packed dataset.

    Iterated by itself or in `DataLoader(dataset, batch_size=None, num_workers=n)` it yields this
    rank's batches, of one epoch, in step with all other ranks. `StreamLoader` is faster, goes on
    from epoch to epoch and can be checkpointed.

    A batch is a `Batch` (a dict from part to value, with `"__key__"`), with `parts=` a tuple or one
    value. An image part is a (batch, 3, height, width) uint8 tensor, `cls` a (batch,) int64 tensor,
    text and bytes are lists, a graph part is a PyG `Batch`. A part whose samples have no one shape
    is a list of tensors.

    Attributes:
        course: What it delivers, step by step.
        mixture: The mixture that it streams, or None.
        max_errors: How many samples of a pass may be left out.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Mixture,
        *,
        batch_size: int | None = None,
        budget: Budget | None = None,
        shuffle: Shuffle = False,
        seed: int = 0,
        parts: str | Sequence[str] | None = None,
        decode: Mapping[str, Decoder] | None = None,
        transform: Transform | None = None,
        tail: Tail = "drop",
        on_error: OnError = "raise",
        max_errors: int | None = None,
        world: World | None = None,
        window: int | None = None,
        lanes: int | None = None,
        grain: int | None = None,
        verify: bool = True,
        index: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a dataset.

        Args:
            url: Folder, URL, brace pattern of tars, or a `Mixture` of datasets.
            batch_size: Samples per rank and step; either this or `budget`.
            budget: Nodes and edges per rank and step, for graphs: batches are as full as it allows,
                and their number may differ from epoch to epoch.
            shuffle: False for pack order, True for permuted windows of the epoch's permuted shards,
                "full" for one permutation of all samples, for local data.
            seed: Of order and augmentations.
            parts: None for a dict of all parts, a name for one value, names for a tuple; `jpg;png`
                is the first of these that a sample has; `"__key__"` and `"__mask__"` may be named.
            decode: By part: `bytes` for the raw bytes, a decoder of streamshard's (such as
                `RandomResizedCrop`), or any callable from the codec's value to another. A callable
                that has a parameter `generator` is given a `torch.Generator`, seeded from (seed,
                epoch, position); the global ones of torch, numpy and random are seeded for it too.
                One with the attribute `form = None` makes batches lists, for values of many shapes.
            transform: Called with each sample, a dict with `"__key__"`, and perhaps a generator, as
                above; returns a dict.
            tail: "drop" leaves out the last incomplete global batch, "pad" fills it from the start
                of the sequence and adds `"__mask__"`, (batch,) bool, true for real samples, "exact"
                delivers everything once, so that the last batch is smaller, and empty where a rank
                has no share. The number of steps is the same on every rank.
            on_error: "raise", or "skip" to leave out samples that can't be read or decoded: the
                batch shrinks, the number of steps does not change.
            max_errors: With "skip": how many samples of a pass may be left out before it is an
                error after all; counted in each process by itself in a plain DataLoader.
            world: This rank and the number of ranks, where several ranks want the same data; by
                default an initialised `torch.distributed`, else `RANK` and `WORLD_SIZE`, else one.
            window: Samples that are shuffled among each other; by default four mean shards, at
                least 1,024.
            lanes: Independent streams that the epoch is cut into, so that each is read by one
                worker; by default derived from the world.
            grain: Samples that a lane gives at a time; by default the batch size. With a budget a
                lane gives a batch at a time.
            verify: Check what is read from local data; what comes over a network always is.
            index: Where `.streamshard/` lies when it is not beside the tars.
            storage_options: For fsspec.

        Raises:
            UsageError: An argument breaks its rule, a part does not exist, or a graph is larger
                than the budget.
            DatasetError: There is no dataset, or it can't be used.
        """
        super().__init__()
        if budget is not None and not isinstance(budget, Budget):
            raise UsageError(f"budget is {budget!r}; it must be an ss.Budget")
        if (batch_size is None) == (budget is None):
            raise UsageError("either batch_size= or budget= says how large a batch is")

        def opened(one: str | os.PathLike[str]) -> Source:
            shards = Shards(one, index=index, verify=verify, storage_options=storage_options)
            return Source(shards, View.whole(shards), shuffle, window, decode or {}, transform)

        self.mixture = url if isinstance(url, Mixture) else None
        if isinstance(url, Mixture):
            if index is not None:
                raise UsageError("index= belongs to one dataset; give it to the mixture's sources")
            if budget is not None:
                raise UsageError("a mixture can't be cut by a budget= yet; use batch_size=")
            if url.has_only_datasets and (decode or transform or shuffle or not verify):
                raise UsageError(
                    "decode=, transform=, shuffle= and verify= are those of the mixture's sources, "
                    "which are datasets already"
                )
            sources = sources_of(url, opened, decode or {})
            mixture = url.plan(sources)
            plan: Plan = mixture
            fingerprint = mixture_fingerprint(mixture, sources)
        else:
            sources = (opened(url),)
            plan, fingerprint = _plan_of(sources[0], budget)
        self._given_world, self._world = world, None  # type: tuple[World | None, World | None]
        self.max_errors = max_errors
        kind: Callable[..., Course] = Course if budget is None else BudgetCourse
        self.course = kind(
            sources=sources,
            plan=plan,
            fingerprint=fingerprint,
            batch_size=1 if batch_size is None else operator.index(batch_size),
            tail=tail,
            seed=seed,
            shuffle=shuffle,
            given={"lanes": lanes, "grain": grain, "window": window},
            assembler=Assembler(
                sources,
                parts=parts if parts is None or isinstance(parts, str) else tuple(parts),
                on_error=on_error,
                seed=seed,
                with_source=self.mixture is not None,
            ),
        )
        self._epoch = _epoch_cell()

    @property
    def source(self) -> Source:
        """What is streamed: samples, their order, what becomes of their parts.

        Raises:
            UsageError: It is a mixture, which has several.
        """
        if self.mixture is not None:
            raise UsageError(
                "a mixture is chosen from by its sources: ss.Mixture({name: dataset.select(…), …})"
            )
        return self.course.sources[0]

    @property
    def shards(self) -> Shards:
        """The samples of the whole dataset by number."""
        return self.source.shards

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names by `cls`, or None; of a mixture, those that all its sources have."""
        return common_classes(self.course.sources)

    @property
    def world(self) -> World:
        """This rank and the number of ranks, found when first asked for.

        Raises:
            UsageError: The answer is not what it was.
        """
        if self._given_world is not None:
            return self._given_world
        if get_worker_info() is not None and self._world is not None:
            return self._world  # a worker has no process group of its own to ask
        found = detect_world()
        if self._world is not None and self._world != found:
            raise UsageError(
                f"the world was {self._world} and is now {found}: call init_process_group before "
                "the dataset is first used, or give world="
            )
        self._world = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": self.world}  # for workers that can't find it

    def __len__(self) -> int:
        """Steps of the epoch that was set, whole; the same on every rank."""
        world = self.world
        return self.course.share(self.course.first_cursor(world, self.epoch), world).steps

    @property
    def fill(self) -> float:
        """How full the batches of the epoch that was set are, 0 to 1.

        The mean over all batches of max(nodes / max_nodes, edges / max_edges), 1 at most for each.

        Raises:
            UsageError: There is no budget to fill.
        """
        if not isinstance(self.course, BudgetCourse):
            raise UsageError("fill is the fill of a budget=; there is none")
        return self.course.batches(self.course.first_cursor(self.world, self.epoch)).fill

    def select(
        self,
        *,
        labels: Sequence[int | str] | None = None,
        keys: Iterable[str] | None = None,
        where: Where | None = None,
    ) -> ShardDataset:
        """The dataset of some samples, decided from the indexes before any data is read.

        Args:
            labels: Values of `cls`, or class names.
            keys: Keys.
            where: A function of the index's columns, a dict: `"__key__"`, a list of str, and by
                part and fact (`"cls"`, `"jpg:width"`, `"graph:nodes"`) (rows,) int64 arrays. It
                returns (rows,) bool, and must give the same answer in every process.

        Raises:
            UsageError: A class is unknown, or nothing is left.
        """
        source = self.source
        view = selected(source.view, source.shards, labels=labels, keys=keys, where=where)
        return self._viewed(view)

    def split(self, *, by: str = "key", **fractions: float) -> dict[str, ShardDataset]:
        """Datasets that share no sample, by a stable hash of the key.

        A sample stays in its part whatever else is packed: `dataset.split(train=0.9, val=0.1)`.

        Args:
            by: "key" is the only way there is.
            fractions: About how much of the samples each part gets; together at most 1.

        Raises:
            UsageError: The fractions are out of their range, or a part is empty.
        """
        if by != "key":
            raise UsageError(f'by is {by!r}; it must be "key"')
        shards, view = self.source.shards, self.source.view
        return {
            name: self._viewed(view.narrowed(shards, part, f"{name}={fractions[name]}"))
            for name, part in hash_ranges(fractions, view).items()
        }

    def __getitem__(self, places: slice) -> ShardDataset:
        """The dataset of the samples [begin:end] in pack order; reads no index.

        Raises:
            UsageError: It is no slice, has a step, or leaves nothing.
        """
        if not isinstance(places, slice) or places.step not in (None, 1):
            raise UsageError("only dataset[begin:end] is a dataset; ss.open(url)[k] is a sample")
        view = self.source.view
        begin, end, _ = places.indices(len(view))
        return self._viewed(view.between(begin, end, self.source.where))

    def _viewed(self, view: View) -> ShardDataset:
        dataset = object.__new__(type(self))
        dataset.__dict__.update(self.__dict__)  # a copy would settle the world, as pickling does
        source = self.source.viewed(view)
        plan, fingerprint = _plan_of(source, self.course.budget)
        dataset.course = dataclasses.replace(
            self.course, sources=(source,), plan=plan, fingerprint=fingerprint
        )
        dataset._epoch = _epoch_cell()
        return dataset

    @property
    def epoch(self) -> int:
        """The epoch that was set."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; `StreamLoader` does this by itself."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; it must be at least 0")
        self._epoch[0], self._epoch[1] = epoch, -1

    def __iter__(self) -> Steps:
        """Batches of this rank, and in a worker of that worker: every n-th step from the w-th."""
        refuse_collation()
        if self.course.assembler.encoded:
            part = min(self.course.assembler.encoded)
            raise UsageError(
                f"part {part!r} is to be decoded on a GPU, which StreamLoader(dataset, "
                "device='cuda') does; elsewhere give decode= the crop without ss.GpuDecode"
            )
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Read once, here: in the generator's body, one pass could see two epochs.
        epoch = self.epoch
        if worker == 0:
            self._notice_repeat(epoch)
        world, allocate = self.world, shared_memory if info else plain_memory
        return Steps(self.course, world, allocate, self.report, epoch, worker, workers)

    def _notice_repeat(self, epoch: int) -> None:
        """Say once that a shuffled epoch comes again because nobody called `set_epoch`."""
        if self.course.shuffle and epoch == int(self._epoch[1]) and not int(self._epoch[2]):
            self._epoch[2] = 1
            logger.warning(
                "epoch %d is iterated again, in the same order and with the same augmentations: "
                "call dataset.set_epoch(epoch) before each epoch, or use StreamLoader",
                epoch,
            )
        self._epoch[1] = epoch

    def report(self, block: Block, skipped: int) -> int:
        """Log what was left out of a block; the number of samples left out so far.

        Raises:
            SampleError: It is more than `max_errors`.
        """
        for message in block.layout.skipped:
            logger.warning("skipped: %s", message)
        skipped += len(block.layout.skipped)
        if self.max_errors is not None and skipped > self.max_errors:
            last = block.layout.skipped[-1] if block.layout.skipped else ""
            raise SampleError(
                f"more than {self.max_errors} samples can't be used; the last: {last}"
            )
        return skipped


def _plan_of(source: Source, budget: Budget | None) -> tuple[Plan, str]:
    """The plan of one dataset, and the fingerprint of what it is made of."""
    plan = BudgetPlan(source, budget) if budget else DatasetPlan(source.view.counts)
    return plan, source.view.fingerprint


def _epoch_cell() -> torch.Tensor:
    """Epoch, the epoch iterated last (-1: none), and whether a repeat was told of.

    In shared memory, so that workers that live on from epoch to epoch see the change, and their
    trainer and the workers after them what they saw.
    """
    cell: torch.Tensor = torch.tensor([0, -1, 0]).share_memory_()  # type: ignore[no-untyped-call]
    return cell

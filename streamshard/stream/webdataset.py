"""A source for webdataset pipelines: their decoders and filters, our division and resume."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from streamshard.errors import UsageError
from streamshard.plan.cursor import Cursor
from streamshard.plan.order import Shuffle
from streamshard.plan.share import Tail, World
from streamshard.stream.dataset import ShardDataset
from streamshard.stream.reader import Shards


class WebdatasetSource(IterableDataset[dict[str, Any]]):
    """Samples as webdataset's own readers give them: `__key__`, `__url__`, and bytes by part.

    The first stage of a `webdataset.DataPipeline`. Every worker of every rank gets whole runs of
    `batch_size` samples, so `.batched(batch_size)` behind it makes the batches of `ShardDataset`.

    Attributes:
        dataset: What is streamed.
    """

    def __init__(self, dataset: ShardDataset) -> None:
        super().__init__()
        self.dataset = dataset
        self._start: Cursor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.dataset.set_epoch(epoch)
        self._start = None

    def state_dict(self, batches: int) -> dict[str, Any]:
        """The cursor once the training loop has received so many batches of this pass."""
        return self.dataset.course.after(self._begin, self.dataset.world, batches).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor, on any number of ranks and workers; call it before the iteration.

        Raises:
            CursorError: It belongs to another dataset, seed, shuffle or order.
        """
        cursor = self.dataset.course.resumed(state, self.dataset.world)
        self.dataset.set_epoch(cursor.epoch)
        self._start = cursor

    @property
    def _begin(self) -> Cursor:
        return self._start or self.dataset.course.first_cursor(
            self.dataset.world, self.dataset.epoch
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This worker's samples, one after another."""
        steps = iter(self.dataset)
        if self._start is not None:
            steps.start_at(self._start)
        url = self.dataset.shards.where
        for batch in steps:
            for number, key in enumerate(batch["__key__"]):
                values = {part: batch[part][number] for part in self.dataset.shards.manifest.parts}
                present = {part: value for part, value in values.items() if value is not None}
                yield {"__key__": key, "__url__": url, **present}


def webdataset_source(
    url: str | os.PathLike[str],
    *,
    batch_size: int,
    shuffle: Shuffle = False,
    seed: int = 0,
    tail: Tail = "drop",
    world: World | None = None,
    index: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> WebdatasetSource:
    """A dataset as the source of a webdataset pipeline.

    `wds.DataPipeline(webdataset_source(url, batch_size=64), wds.decode("torchrgb"), …)`

    Args:
        url: Folder, URL, or brace pattern of tars.
        batch_size: Samples per rank and step; what the pipeline batches by.
        shuffle: See `ShardDataset`; likewise the rest.
        seed: Of the order.
        tail: "drop" or "exact".
        world: This rank and the number of ranks.
        index: Where `.streamshard/` lies when it is not beside the tars.
        storage_options: For fsspec.

    Raises:
        UsageError: An argument breaks its rule.
        DatasetError: There is no dataset, or it can't be used.
    """
    if not isinstance(url, str | os.PathLike):
        raise UsageError(f"a URL or path is wanted, not a {type(url).__name__}")
    parts = Shards(url, index=index, storage_options=storage_options).manifest.parts
    return WebdatasetSource(
        ShardDataset(
            url,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            tail=tail,
            decode=dict.fromkeys(parts, bytes),
            world=world,
            index=index,
            storage_options=storage_options,
        )
    )

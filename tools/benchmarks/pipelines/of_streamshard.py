"""streamshard: its own decoder, uint8 written into the batch's block."""

from serving import AHEAD, BATCH_SIZE, CROP, NotYetError, Pipeline, serve

# isort: split

import torch

import streamshard as ss


class Streamshard(Pipeline):
    def pack(self) -> None:
        if self.task.what != "npy":
            return
        ss.pack_images(self.task.jpegs, self.task.home, format="npy", shard_size="64MB")
        data = ss.ShardDataset(
            self.task.home, batch_size=1, parts="npy", decode={"npy": ss.RandomResizedCrop(CROP)}
        )
        try:
            next(iter(ss.StreamLoader(data)))
        except ss.errors.SampleError as error:
            reason = "RandomResizedCrop does not read npy parts yet"
            raise NotYetError(reason) from error

    def open(self) -> ss.StreamLoader:
        image, folder = ("npy", self.task.home) if self.task.what == "npy" else ("jpg", "")
        lies = torch.contiguous_format if self.task.contiguous else torch.channels_last
        crop = ss.RandomResizedCrop(CROP, memory_format=lies)
        decode = bytes if self.task.what == "bytes" else crop
        dataset = ss.ShardDataset(
            folder or self.task.tars, batch_size=BATCH_SIZE, shuffle=True, parts=(image, "cls"),
            decode={image: decode}, tail="exact",
        )  # fmt: skip
        return ss.StreamLoader(
            dataset, num_workers=self.task.workers, prefetch=AHEAD, reuse=self.task.reuse,
            start_method="fork",
        )  # fmt: skip

    def begin(self, loader: ss.StreamLoader) -> None:
        # Workers go on into the next epoch by themselves: they have batches ready that they made
        # while nobody measured. In another epoch than that they have to begin anew.
        state = loader.state_dict()
        loader.load_state_dict({**state, "epoch": state["epoch"] + 1})

    def count(self, batch) -> int:
        return len(batch[1])

    def close(self, loader: ss.StreamLoader) -> None:
        loader.close()


if __name__ == "__main__":
    serve(Streamshard)

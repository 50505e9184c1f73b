"""Molecules of about 23 nodes, beside PyG's own ways to keep them, webdataset and LitData."""

import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import webdataset as wds
from litdata_peer import LitdataPeer
from molecules import make_molecules, read_molecules
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from turns import Run, epoch

import streamshard as ss

COUNT = 20_000
OURS, MEMORY = "streamshard", "PyG in memory"


def graphs_in(batch: Batch) -> int:
    return int(batch.num_graphs)


class Files(torch.utils.data.Dataset):
    """One `.pt` a graph."""

    def __init__(self, folder: Path, molecules: list[Data]) -> None:
        self.folder, self.count = folder, len(molecules)
        folder.mkdir()
        for number, graph in enumerate(molecules):
            torch.save(graph, folder / f"{number}.pt")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Data:
        return torch.load(self.folder / f"{number}.pt", weights_only=False)  # its own files


class Contestants:
    """Ways to keep the same molecules and to batch them."""

    def __init__(self, folder: Path, molecules: list[Data], workers: int) -> None:
        self.folder, self.molecules, self.workers = folder, molecules, workers
        ss.pack_graphs(molecules, folder / "packed", shard_size="16MB")
        self.files = Files(folder / "files", molecules)
        (folder / "pickles").mkdir()
        with wds.ShardWriter(f"{folder}/pickles/s-%05d.tar", maxcount=2500, verbose=0) as out:
            for number, graph in enumerate(molecules):
                out.write({"__key__": f"{number:06d}", "pyd": pickle.dumps(graph)})

    def ours(self, batch_size: int, workers: int, *, reuse: bool) -> Run:
        dataset = ss.ShardDataset(
            self.folder / "packed", batch_size=batch_size, shuffle=True, parts="graph", tail="exact"
        )
        loader = ss.StreamLoader(dataset, num_workers=workers, reuse=reuse)
        return lambda: epoch(loader, graphs_in)

    def pyg(self, data: object, batch_size: int, workers: int) -> Run:
        common = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
        loader = DataLoader(
            data, batch_size=batch_size, shuffle=True, num_workers=workers, **common
        )
        return lambda: epoch(loader, graphs_in)

    def webdataset(self, batch_size: int) -> Run:
        tars = sorted(map(str, (self.folder / "pickles").glob("*.tar")))
        data = wds.WebDataset(tars, shardshuffle=8, nodesplitter=wds.split_by_node).shuffle(5000)
        data = data.map(lambda sample: pickle.loads(sample["pyd"]))
        data = data.batched(batch_size, partial=True, collation_fn=Batch.from_data_list)
        loader = wds.WebLoader(
            data, batch_size=None, num_workers=self.workers, persistent_workers=True,
            prefetch_factor=4,
        )  # fmt: skip
        return lambda: epoch(loader, graphs_in)


def bytes_on_disk(folder: Path, molecules: list[Data]) -> dict[str, float]:
    """Tars and sidecars, against pickled `Data` in tars."""

    def total(place: Path) -> int:
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    ss.pack_graphs(molecules, folder / "narrow", shard_size="16MB", narrow=True)
    pickles = total(folder / "pickles")
    return {
        "bytes / pickles in tars": total(folder / "packed") / pickles,
        "bytes, narrow / pickles in tars": total(folder / "narrow") / pickles,
    }


def packing(folder: Path, molecules: list[Data], rounds: int) -> dict[str, float]:
    """Packing `Data` objects, against `torch.save` one by one, in turns."""
    some = molecules[:4000]

    def ours() -> None:
        ss.pack_graphs(some, folder / "again", overwrite=True)

    def theirs() -> None:
        for graph in some:
            torch.save(graph, folder / "one.pt")

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("theirs", theirs)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    ratio = statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"])
    return {"packing / torch.save one by one": ratio}


def measure(
    folder: Path, workers: int, rounds: int, smiles: Path | None = None
) -> dict[str, float]:
    molecules = read_molecules(smiles, COUNT) if smiles else make_molecules(COUNT)
    torch.set_num_threads(1)
    there = Contestants(folder, molecules, workers)
    figures: dict[str, float] = {}
    for batch_size in (128, 1024):
        runs: dict[str, Callable[[], int]] = {
            f"{OURS}, ring": there.ours(batch_size, workers, reuse=True),
            OURS: there.ours(batch_size, workers, reuse=False),
            MEMORY: there.pyg(molecules, batch_size, workers),
            f"{OURS}, no workers": there.ours(batch_size, 0, reuse=False),
            f"{MEMORY}, no workers": there.pyg(molecules, batch_size, 0),
        }
        if batch_size == 128:
            runs["one .pt a graph"] = there.pyg(there.files, batch_size, workers)
            runs["webdataset, pickles"] = there.webdataset(batch_size)
        peer = LitdataPeer(folder / "litdata", molecules, batch_size, workers)
        if peer.is_there:
            runs["LitData"] = peer.epoch
        found = {f"{batch_size}: {name}": rate for name, rate in compared(runs, rounds).items()}
        peer.close()
        figures |= told(found)
    return figures | told(bytes_on_disk(folder, molecules) | packing(folder, molecules, rounds))


def told(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        print(f"{name:48} {value:12,.2f}", flush=True)
    return figures


def compared(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Medians, and our ratios to each peer: a peer without workers meets us without."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            if "LitData" in name and number > 2:
                continue  # a minute an epoch
            begin = time.perf_counter()
            samples = run()
            if number:
                rates[name].append(samples / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {}
    for name, rate in medians.items():
        if OURS in name:
            continue
        ours = [f"{OURS}, no workers"] if "no workers" in name else [f"{OURS}, ring", OURS]
        ratios |= {f"{mine} / {name}": medians[mine] / rate for mine in ours}
    return medians | ratios

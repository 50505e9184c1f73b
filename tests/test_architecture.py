"""The house: which room may know which, and what each may not touch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import streamshard

PACKAGE = Path(streamshard.__file__).parent
GROUND = {"errors"}
MATERIALS = {"store", "codec", "shard", "plan"}
MAY_KNOW = {
    "errors": set[str](),
    **dict.fromkeys(MATERIALS, GROUND),
    "pack": MATERIALS | GROUND,
    "stream": MATERIALS | GROUND,
    "cli": {"pack", "stream"} | GROUND,
}
PURE = {"plan", "shard"}
NOT_IN_PURE_ROOMS = {"torch", "torch_geometric", "time", "random", "os.environ", "datetime"}
LOADS_TENSORS = PACKAGE / "pack" / "pt_files.py"
ASKS_FOR_RANK = PACKAGE / "stream" / "dataset.py"


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    known = {name.split(".")[1] for name in imports(path) if name.startswith("streamshard.")}
    known -= {room, "__version__"}
    assert known <= MAY_KNOW[room], f"{room} knows {sorted(known - MAY_KNOW[room])}"


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_know_no_torch_clock_environment_or_global_randomness(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        roots = set(imports(path)) | {name.partition(".")[0] for name in imports(path)}
        assert not roots & NOT_IN_PURE_ROOMS, path
        text = path.read_text()
        assert "np.random" not in text
        assert "os.environ" not in text
        assert "getenv" not in text


def test_no_cycle_between_modules() -> None:
    graph: dict[str, set[str]] = {}
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in modules()}
    for path in modules():
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        graph[name] = {imported for imported in imports(path) if imported in names}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_only_one_file_asks_for_rank_and_worker() -> None:
    for path in modules():
        text = path.read_text()
        asks = any(word in text for word in ("get_worker_info", '"RANK"', "torch.distributed"))
        assert asks == (path == ASKS_FOR_RANK), path


def test_nothing_unpickles_what_it_did_not_make() -> None:
    """What our own processes send each other is the only thing that is ever unpickled."""
    ours = ("batch.py", "builder.py", "worker.py", "mapped.py")
    allowed = {PACKAGE / "pack" / "pool.py", *(PACKAGE / "stream" / name for name in ours)}
    for path in modules():
        if path not in allowed:
            assert not {"pickle", "dill", "cloudpickle"} & set(imports(path)), path
        if path != LOADS_TENSORS:
            assert "torch.load" not in path.read_text(), path
            assert not {"torch.load", "torch.serialization.load"} & set(imports(path)), path
        assert "shell=True" not in path.read_text(), path


def test_torch_load_is_called_in_one_file_and_always_for_tensors_only() -> None:
    nodes = list(ast.walk(ast.parse(LOADS_TENSORS.read_text())))
    named = [node for node in nodes if isinstance(node, ast.Attribute) and is_torch_load(node)]
    called = [node for node in nodes if isinstance(node, ast.Call) and is_torch_load(node.func)]
    assert named == [call.func for call in called] != [], "not to be passed on, or kept"
    for call in called:
        options = {option.arg: option.value for option in call.keywords}
        checked = options["weights_only"]
        assert isinstance(checked, ast.Constant)
        assert checked.value is True
        assert None not in options, "no **, which could say it again"
    assert not {"torch.load", "torch.serialization"} & set(imports(LOADS_TENSORS))


def is_torch_load(node: ast.expr) -> bool:
    return ast.unparse(node) in ("torch.load", "torch.serialization.load")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_binds_lazily_and_is_quick() -> None:
    seconds, loaded = run(
        "import sys, time, torch; begin = time.process_time(); import streamshard\n"
        "print(time.process_time() - begin); print('streamshard.stream' in sys.modules)"
    ).splitlines()
    assert float(seconds) < 0.3
    assert loaded == "False"


def test_using_images_imports_no_graph_library() -> None:
    loaded = run(
        "import streamshard as ss, sys; ss.ShardDataset, ss.StreamLoader, ss.pack_images\n"
        "ss.pack_graphs; print('torch_geometric' in sys.modules)"
    )
    assert loaded.strip() == "False"


def test_all_names_cost_little_on_top_of_torch() -> None:
    code = (
        "import time, torch; from torch.utils.data import DataLoader; begin = time.process_time()\n"
        "import streamshard as ss; [getattr(ss, name) for name in ss.__all__]\n"
        "print(time.process_time() - begin)"  # not what a busy machine adds
    )
    # All of them together; `import streamshard` alone is the test above.
    assert any(float(run(code)) < 0.4 for _ in range(3))

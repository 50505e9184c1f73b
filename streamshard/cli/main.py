"""The `streamshard` command."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from streamshard import __version__
from streamshard.cli.export import Export, check_formats, export, export_packed
from streamshard.cli.options import (
    AsJson,
    Destination,
    Exclude,
    Formatted,
    Include,
    IndexAt,
    Keys,
    Mapped,
    MaxSide,
    OnError,
    Overwrite,
    Quality,
    Resize,
    Resume,
    Seed,
    ShardSize,
    Shuffle,
    Skip,
    Split,
    Workers,
    fractions_of,
)
from streamshard.cli.pack_table import pack_table
from streamshard.cli.pack_tars import pack_tars
from streamshard.cli.plan import plan
from streamshard.cli.show import (
    format_bytes,
    print_summary,
    progress,
    result,
    tell_finished,
)
from streamshard.cli.unpack import cat, unpack
from streamshard.cli.verify import verify
from streamshard.errors import StreamshardError, UsageError

app = typer.Typer(
    help="Pack images and graphs into tar shards; look into them; check them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
pack_app = typer.Typer(help="Pack a source into shards.", no_args_is_help=True)
app.add_typer(pack_app, name="pack")
app.command("plan")(plan)
app.command("export")(export)
app.command("cat")(cat)
app.command("unpack")(unpack)
app.command("verify")(verify)

pack_app.command("table")(pack_table)
pack_app.command("tars")(pack_tars)

_INTERRUPTED = 130  # as shells have it


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Pack images and graphs into tar shards; look into them; check them."""
    if show:
        print(f"streamshard {__version__}")
        raise typer.Exit


@pack_app.command("images")
def pack_images(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder: class folders, or flat.")],
    destination: Destination,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A .csv or .json with the label of each path; else by folder."
        ),
    ] = None,
    shard_size: ShardSize = "256MB",
    resize: Resize = None,
    max_side: MaxSide = None,
    format: Formatted = None,
    quality: Quality = 90,
    workers: Workers = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    keys: Annotated[Keys, typer.Option(help="Path below SRC, or number.")] = Keys.path,
    include: Include = None,
    exclude: Exclude = None,
    map: Mapped = None,
    split: Split = None,
    on_error: Skip = OnError.stop,
    resume: Resume = False,
    overwrite: Overwrite = False,
    export: Export = None,
    as_json: AsJson = False,
) -> None:
    """Pack a folder of images; they keep their bytes unless something else is asked for."""
    from streamshard.pack import images

    check_formats(export)
    tell_finished(destination, resume=resume)
    with progress("packing images") as report:
        summary = images.pack_images(
            source,
            destination,
            labels=labels,
            shard_size=shard_size,
            resize=resize,
            max_side=max_side,
            format=format.value if format else None,
            quality=quality,
            shuffle=shuffle,
            seed=seed,
            keys=keys.value,
            include=include or (),
            exclude=exclude or (),
            map=map,
            split=fractions_of(split),
            on_error=on_error.value,
            resume=resume,
            overwrite=overwrite,
            workers=workers,
            start_method="forkserver",  # the progress bar's thread would not survive a plain fork
            progress=report,
        )
    summary.notes.extend(export_packed(destination, export, fractions_of(split)))
    print_summary(summary, destination, as_json=as_json)


@pack_app.command("graphs")
def pack_graphs(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="module:callable or file.py:callable, a folder of .pt files, a .jsonl, or a .csv "
            "with --smiles; the last two may be compressed, or URLs.",
        ),
    ],
    destination: Destination,
    smiles: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of a .csv: the molecules.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Of a .csv: a number for y. Once for each."),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the callable: JSON or text. Once for each."),
    ] = None,
    shard_size: ShardSize = "64MB",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read files.")] = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    allow_empty: Annotated[bool, typer.Option(help="Take graphs without nodes.")] = False,
    allow_nan: Annotated[bool, typer.Option(help="Take NaN and infinity.")] = False,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Keep integers in as few bytes as their values need.")
    ] = False,
    include: Include = None,
    exclude: Exclude = None,
    map: Mapped = None,
    split: Split = None,
    on_error: Skip = OnError.stop,
    resume: Resume = False,
    overwrite: Overwrite = False,
    export: Export = None,
    as_json: AsJson = False,
) -> None:
    """Pack PyG graphs: from files, or from a callable that returns them, such as a dataset."""
    from streamshard.pack import graphs
    from streamshard.pack.specs import parse_args

    check_formats(export)
    args = parse_args(arg or [])
    tell_finished(destination, resume=resume)
    with progress("packing graphs") as report:
        summary = graphs.pack_graphs(
            source,
            destination,
            smiles=smiles,
            targets=target or (),
            args=args,
            shard_size=shard_size,
            shuffle=shuffle,
            seed=seed,
            allow_empty=allow_empty,
            allow_nan=allow_nan,
            narrow=narrow,
            include=include or (),
            exclude=exclude or (),
            map=map,
            split=fractions_of(split),
            on_error=on_error.value,
            resume=resume,
            overwrite=overwrite,
            workers=workers,
            start_method="forkserver",  # see pack_images
            progress=report,
        )
    summary.notes.extend(export_packed(destination, export, fractions_of(split)))
    print_summary(summary, destination, as_json=as_json)


@app.command()
def index(
    pattern: Annotated[str, typer.Argument(help="One tar, a pattern of tars, or a folder.")],
    out: Annotated[str | None, typer.Option(help="Folder for .streamshard/.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make .streamshard/ for tars that others wrote; the tars are not touched."""
    from streamshard.pack.index import index_tars

    with progress("indexing") as report:
        summary = index_tars(pattern, out=out, progress=report)
    print_summary(summary, out or pattern, as_json=as_json)


@app.command()
def info(destination: Destination, index: IndexAt = None, as_json: AsJson = False) -> None:
    """Tell what a dataset is: samples, shards, parts, classes."""
    from streamshard.stream.reader import Shards

    shards = Shards(destination, index=index)
    manifest = shards.manifest
    parts = {name: {"codec": part.codec, **part.schema} for name, part in manifest.parts.items()}
    value = {
        "samples": len(shards),
        "shards": len(manifest.table),
        "bytes": int(manifest.table.nbytes.sum()),
        "parts": parts,
        "classes": list(manifest.classes) if manifest.classes else None,
        "fingerprint": manifest.fingerprint,
    }
    lines = [
        f"{len(shards)} samples in {len(manifest.table)} shards, {format_bytes(value['bytes'])}",  # type: ignore[arg-type]
        f"fingerprint {manifest.fingerprint}",
        *(_part_line(name, part.codec, part.schema) for name, part in manifest.parts.items()),
    ]
    if manifest.classes:
        some = ", ".join(manifest.classes[:8]) + (", …" if len(manifest.classes) > 8 else "")
        lines.append(f"{len(manifest.classes)} classes: {some}")
    result(value, lines, as_json=as_json)


def _part_line(name: str, codec: str, schema: Any) -> str:
    if "fields" in schema:
        fields = (
            f"{field} {spec['dtype']} {spec['shape']}" for field, spec in schema["fields"].items()
        )
        return f"part {name}: {codec}, {', '.join(fields)}".replace("None", "*")
    known = ", ".join(f"{what} {value}" for what, value in schema.items() if value is not None)
    return f"part {name}: {codec}" + (f", {known}" if known else "")


@app.command("ls")
def list_samples(
    destination: Destination,
    index: IndexAt = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the keys in pack order, with the bytes of each part."""
    from streamshard.stream.reader import Shards

    shards = Shards(destination, index=index)
    for number, shard in enumerate(shards.manifest.table):
        extents = {part: shards.extent(number, part) for part in shards.manifest.parts}
        for row, key in enumerate(shards.index(number).keys):
            sizes = {part: int(extent.size[row]) for part, extent in extents.items()}
            sizes = {part: size for part, size in sizes.items() if size >= 0}
            line = f"{key}\t{shard.name}\t" + " ".join(f"{p}:{n}" for p, n in sizes.items())
            value = {"key": key, "shard": shard.name, "parts": sizes}
            result(value, [line], as_json=as_json)


def main() -> None:
    """Run the command; an error of ours is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        status = app(standalone_mode=False) or 0
        if status == _INTERRUPTED and sys.argv[1:2] == ["pack"]:
            is_split = any(word.startswith("--split") for word in sys.argv)
            remedy = "" if is_split else "; what is finished of it --resume goes on with"
            _fail(f"interrupted{remedy}", status)
        sys.exit(status)
    except StreamshardError as error:
        _fail(error, 2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        # Wrong usage, as typer finds it; the home of its exceptions differs between versions.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message())
            sys.exit(2)
        _fail(error.format_message(), 2)


def _fail(error: object, status: int) -> None:
    print("streamshard:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()

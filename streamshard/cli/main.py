"""The `streamshard` command."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer

from streamshard import __version__
from streamshard.cli.export import export
from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.pack_graphs import pack_graphs
from streamshard.cli.pack_images import pack_images
from streamshard.cli.pack_mds import pack_mds
from streamshard.cli.pack_parquet import pack_parquet
from streamshard.cli.pack_table import pack_table
from streamshard.cli.pack_tars import pack_tars
from streamshard.cli.plan import plan
from streamshard.cli.show import format_bytes, print_summary, progress, result
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

pack_app.command("images")(pack_images)
pack_app.command("table")(pack_table)
pack_app.command("tars")(pack_tars)
pack_app.command("mds")(pack_mds)
pack_app.command("parquet")(pack_parquet)
pack_app.command("graphs")(pack_graphs)

_INTERRUPTED = 130  # as shells have it


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Pack images and graphs into tar shards; look into them; check them."""
    if show:
        print(f"streamshard {__version__}")
        raise typer.Exit


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
        _end(app(standalone_mode=False) or 0)
    except StreamshardError as error:
        _fail(error, 2 if isinstance(error, UsageError) else 1)
    except OSError as error:  # of what is printed: those of files are turned into ours
        with open(os.devnull, "w") as nowhere:  # where what is left goes at the end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        _fail(f"standard output: {error.strerror}", 1)
    except Exception as error:
        _fail_as_typer(error)


def _fail_as_typer(error: Exception) -> None:
    """Wrong usage, as typer finds it; the home of its exceptions differs between versions."""
    if not hasattr(error, "format_message"):
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        print(error.format_message())
        sys.exit(2)
    _fail(error.format_message(), 2)


def _end(status: int) -> None:
    if status == _INTERRUPTED and sys.argv[1:2] == ["pack"]:
        is_split = any(word.startswith("--split") for word in sys.argv)
        remedy = "" if is_split else "; what is finished of it --resume goes on with"
        _fail(f"interrupted{remedy}", status)
    sys.exit(status)


def _fail(error: object, status: int) -> None:
    print("streamshard:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()

"""`streamshard pack graphs`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination
from streamshard.cli.packing import pack_command


@pack_command("packing graphs", images=False, shard_size="64MB")
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
    allow_empty: Annotated[bool, typer.Option(help="Take graphs without nodes.")] = False,
    allow_nan: Annotated[bool, typer.Option(help="Take NaN and infinity.")] = False,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Keep integers in as few bytes as their values need.")
    ] = False,
    **options: Any,
) -> Any:
    """Pack PyG graphs: from files, or from a callable that returns them, such as a dataset."""
    from streamshard.pack import graphs
    from streamshard.pack.specs import parse_args

    return graphs.pack_graphs(
        source,
        destination,
        smiles=smiles,
        targets=target or (),
        args=parse_args(arg or []),
        allow_empty=allow_empty,
        allow_nan=allow_nan,
        narrow=narrow,
        **options,
    )

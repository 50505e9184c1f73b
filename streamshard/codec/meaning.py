"""What the codecs say of a dataset's parts.

An index and a part of a manifest are asked for what they have here, and not known by their types,
which are another room's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamshard.codec.agree import contradictions, facts_of
from streamshard.codec.registry import codec_of, decoded


class Meaning:
    """Judges parts by their codecs (see `shard.verify.Judge`)."""

    def __init__(self, *, decode: bool) -> None:
        """Make a judge.

        Args:
            decode: Decode every part, and compare all that its codec tells of it with index and
                manifest. Otherwise what follows from the index is compared, and integers, which
                cost nothing, with their bytes.
        """
        self._decode = decode

    def rows(self, name: str, part: Any, index: Any) -> Iterator[tuple[int, str]]:
        """See `Judge`."""
        names, matrix = index.matrix(name)
        facts = {fact: matrix[row] for fact, row in names.items()}
        sizes = index.extent(name, optional=part.optional).size
        if facts:  # else no sample of the shard was read at pack, or its codec tells nothing
            yield from contradictions(part.suffix, part.schema, facts, sizes)

    def data(self, name: str, part: Any, index: Any, row: int, data: bytes) -> Iterator[str]:
        """See `Judge`."""
        is_int = codec_of(part.suffix).name == "int"
        if not self._decode and not is_int:
            return
        try:
            decoded(part.suffix, data, part.schema)
            # Facts of a codec that a user brought can't be told again.
            is_ours = part.codec == codec_of(part.suffix).name
            facts = facts_of(part.suffix, data, part.schema) if is_ours else {}
        except Exception as error:  # decoders raise what they like, and none may end the run
            yield f"can't be decoded: {str(error) or type(error).__name__}"
            return
        for fact, value in facts.items():
            found = int(index.fact(name, fact)[row]) if index.has_fact(name, fact) else None
            if found != value:
                yield f"the index says {fact or 'value'}={found}, the data {value}"

"""The checkpoint: where a pass stands, in a few integers.

The sequence does not depend on the number of ranks, workers or the batch size, so a cursor can be
resumed under any of them. It counts what the training loop received, never what was prefetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamshard.errors import CursorError, UsageError
from streamshard.plan.budget import Budget
from streamshard.plan.order import OrderRule

VERSION = 1

_BUDGET = {field.name for field in dataclasses.fields(Budget)}


@dataclass(frozen=True)
class Cursor:
    """A place in the stream of a dataset.

    Attributes:
        epoch: 0, 1, ...
        position: Samples of this epoch that all ranks together have received; with a budget,
            batches of it.
        rule: What the epoch's order is made by.
        fingerprint: Of the dataset.
        budget: What the batches are cut by, or None where each has as many samples.
    """

    epoch: int
    position: int
    rule: OrderRule
    fingerprint: str
    budget: Budget | None = None

    def to_dict(self) -> dict[str, Any]:
        """The cursor as a flat dict of integers, strings and booleans, fit for JSON.

        With a budget it has its fields too, None for a limit that there is not.
        """
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "position": self.position,
            **dataclasses.asdict(self.rule),
            "fingerprint": self.fingerprint,
            **({} if self.budget is None else dataclasses.asdict(self.budget)),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Cursor:
        """The cursor that `to_dict` wrote.

        Raises:
            CursorError: A key is missing or unknown, a value has the wrong type, or the state is of
                another version.
        """
        if type(state.get("version")) is not int or state["version"] != VERSION:
            raise CursorError(
                f"the state has version {state.get('version')!r}; this streamshard reads {VERSION}"
            )
        wanted = {"version", "epoch", "position", "fingerprint"}
        wanted |= {field.name for field in dataclasses.fields(OrderRule)}
        if _BUDGET & set(state):
            wanted |= _BUDGET
        if set(state) != wanted:
            odd = sorted(set(state) ^ wanted)
            raise CursorError(f"not a streamshard state: {odd} missing or unknown")
        for name in ("epoch", "position", "seed", "lanes", "grain", "window"):
            if type(state[name]) is not int or state[name] < 0:
                raise CursorError(f"state: {name} is {state[name]!r}, not a number from 0 up")
        if not isinstance(state["fingerprint"], str):
            raise CursorError(f"state: fingerprint is {state['fingerprint']!r}, not a string")
        try:
            rule = OrderRule(
                **{field.name: state[field.name] for field in dataclasses.fields(OrderRule)}
            )
            budget = Budget(**{name: state[name] for name in _BUDGET}) if _BUDGET & wanted else None
        except UsageError as error:
            raise CursorError(f"state: {error}") from None
        return cls(state["epoch"], state["position"], rule, state["fingerprint"], budget)

    def check(self, **ours: Any) -> None:
        """Refuse to go on from this cursor where it was made with something else.

        Args:
            **ours: What this side has, by name: `fingerprint`, `budget`, and any of the rule's
                fields that must agree.

        Raises:
            CursorError: A value differs; the message shows both sides.
        """
        state = {**self.to_dict(), "budget": self.budget}
        for name, value in ours.items():
            if state[name] != value:
                raise CursorError(
                    f"the state was made with {name}={state[name]!r}, this dataset has {value!r}"
                )

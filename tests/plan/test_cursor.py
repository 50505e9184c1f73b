from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import CursorError
from streamshard.plan.cursor import Cursor
from streamshard.plan.order import OrderRule
from tests.plan.draw import any_rules

RULE = OrderRule(seed=3, shuffle=True, lanes=6, grain=4, window=50)
CURSOR = Cursor(epoch=2, position=96, rule=RULE, fingerprint="f00d")
KEYS = ["epoch", "fingerprint", "grain", "lanes", "position", "seed", "shuffle", "version"]
KEYS += ["window"]

cursors = st.builds(
    Cursor,
    epoch=st.integers(0, 2**40),
    position=st.integers(0, 2**40),
    rule=any_rules,
    fingerprint=st.text(max_size=40),
)


def refuses(state: dict[str, Any], *, naming: str) -> None:
    with pytest.raises(CursorError, match=rf"\b{re.escape(naming)}\b"):
        Cursor.from_dict(state)


@settings(deadline=None)
@given(cursor=cursors)
def test_a_cursor_survives_json(cursor: Cursor) -> None:
    text = json.dumps(cursor.to_dict())
    assert Cursor.from_dict(json.loads(text)) == cursor


def test_a_state_has_these_keys_and_no_others() -> None:
    assert sorted(CURSOR.to_dict()) == KEYS


@settings(deadline=None)
@given(cursor=cursors)
def test_a_state_is_flat_and_plain(cursor: Cursor) -> None:
    assert {type(value) for value in cursor.to_dict().values()} <= {int, str, bool}


def test_a_state_is_a_copy() -> None:
    CURSOR.to_dict()["epoch"] = 77
    assert CURSOR.to_dict()["epoch"] == 2


@pytest.mark.parametrize("name", KEYS)
def test_a_missing_key_is_refused_by_name(name: str) -> None:
    state = CURSOR.to_dict()
    del state[name]
    refuses(state, naming=name)


@pytest.mark.parametrize("name", ["workers", "Epoch", ""])
def test_an_unknown_key_is_refused_by_name(name: str) -> None:
    with pytest.raises(CursorError, match=re.escape(repr(name))):
        Cursor.from_dict({**CURSOR.to_dict(), name: 1})


def test_an_empty_state_is_refused() -> None:
    refuses({}, naming="version")


@pytest.mark.parametrize("name", ["epoch", "position", "seed", "lanes", "grain", "window"])
def test_what_is_not_a_number_from_zero_up_is_refused_by_name(name: str) -> None:
    for value in ("1", 1.0, None, True, -1, [1]):
        refuses({**CURSOR.to_dict(), name: value}, naming=name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**63),
        ("lanes", 0),
        ("grain", 0),
        ("window", 0),
        ("shuffle", "windowed"),
        ("shuffle", None),
        ("shuffle", 1),
        ("shuffle", 0),
        ("shuffle", []),
        ("fingerprint", None),
        ("fingerprint", 7),
        ("version", 0),
        ("version", 2),
        ("version", "1"),
        ("version", None),
        ("version", True),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name: str, value: object) -> None:
    refuses({**CURSOR.to_dict(), name: value}, naming=name)


def test_a_state_of_another_version_shows_both_versions() -> None:
    with pytest.raises(CursorError, match=r"version 99.* 1$"):
        Cursor.from_dict({**CURSOR.to_dict(), "version": 99})


@pytest.mark.parametrize(
    ("name", "state", "ours"),
    [
        ("fingerprint", "f00d", "beef"),
        ("seed", 3, 4),
        ("shuffle", True, "full"),
        ("shuffle", True, False),
        ("lanes", 6, 12),
        ("grain", 4, 32),
        ("window", 50, 1024),
    ],
)
def test_a_difference_is_refused_and_shows_both_sides(
    name: str, state: object, ours: object
) -> None:
    with pytest.raises(CursorError, match=name) as caught:
        CURSOR.check(**{name: ours})
    assert repr(state) in str(caught.value)
    assert repr(ours) in str(caught.value)


def test_the_one_difference_among_many_is_named() -> None:
    with pytest.raises(CursorError, match="grain"):
        CURSOR.check(fingerprint="f00d", seed=3, shuffle=True, lanes=6, grain=5, window=50)


def test_what_agrees_passes() -> None:
    CURSOR.check()
    CURSOR.check(fingerprint="f00d", seed=3, shuffle=True, lanes=6, grain=4, window=50)

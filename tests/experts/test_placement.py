"""Placement's rules, first layout, difference and file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import UserError
from experts.placement import Change, Placement


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 7), st.integers(0, 9))
def test_first_covers_all_and_keeps_copies_apart(layers: int, experts: int, ranks: int, spare: int) -> None:
    slots = -(-experts // ranks) + spare
    placement = Placement.first(layers, experts, ranks, slots)
    assert placement.experts == experts
    for layer in range(layers):
        for rank in range(ranks):
            held = placement.local(rank)[layer]
            held = held[held >= 0]
            assert len(set(held.tolist())) == len(held), "two copies on one rank"
        counts = placement.replicas()[layer]
        assert counts.min() >= 1
        assert counts.max() <= ranks
        # A slot stays empty only where every expert is on its rank already.
        for rank in range(ranks):
            held = placement.local(rank)[layer]
            assert (held >= 0).all() or len(held[held >= 0]) == experts


def test_first_is_contiguous_blocks() -> None:
    placement = Placement.first(1, 8, 3, 3)
    assert placement.slot_expert.tolist() == [[0, 1, 2, 2, 3, 4, 5, 6, 7]]


def test_too_few_slots_says_the_numbers() -> None:
    with pytest.raises(UserError, match=r"found 60 slots, expected at least 64 \(one per expert\)"):
        Placement.first(2, 64, 3, 20)
    with pytest.raises(UserError, match="found 4 slots, expected at least 8"):
        Placement.first(1, 4, 1, 4).check_fits(1, 8)


def test_copies_and_replicas_agree() -> None:
    placement = Placement.first(3, 10, 4, 4)
    copies = placement.copies()
    assert ((copies >= 0).sum(axis=2) == placement.replicas()).all()
    for layer, expert, copy in np.argwhere(copies >= 0):
        assert placement.slot_expert[layer, copies[layer, expert, copy]] == expert


def test_diff_names_each_changed_slot() -> None:
    old = Placement.first(2, 4, 2, 3)
    table = old.slot_expert.copy()
    was = int(table[1, 2])
    table[1, 2] = -1
    assert old.diff(Placement(1, 2, 3, table)) == [Change(1, 2, was, -1)]
    assert old.diff(old) == []


def test_table_is_its_own_and_frozen() -> None:
    table = np.arange(4, dtype=np.int64).reshape(1, 4)
    placement = Placement(0, 2, 2, table)
    table[0, 0] = 3
    assert placement.slot_expert[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        placement.slot_expert[0, 0] = 1


def test_file_keeps_the_table(tmp_path: Path) -> None:
    path = tmp_path / "placement.npz"
    placement = Placement.first(2, 6, 2, 4)
    placement.save(path)
    assert Placement.load(path, ranks=2) == placement


def bad_tables() -> dict[str, tuple[object, str]]:
    good = np.arange(8, dtype=np.int64).reshape(2, 4) % 4
    below, missing = good.copy(), good.copy()
    below[0, 1] = -3
    missing[1, 3] = 0
    above = good.copy()
    above[0, 0] = 4
    return {
        "float": (good.astype(np.float64), "dtype float64, expected int64"),
        "nan": (np.full((2, 4), np.nan), "dtype float64, expected int64"),
        "int32": (good.astype(np.int32), "dtype int32, expected int64"),
        "flat": (good.reshape(-1), r"shape \[8\]"),
        "odd": (good[:, :3].copy(), r"shape \[2, 3\]"),
        "below": (below, "found -3 in slot 1 of layer 0"),
        "above": (above, "found expert 4 in slot 0 of layer 0"),
        "missing": (missing, "layer 1: found no slot for expert 3"),
        "empty": (np.full((2, 4), -1, dtype=np.int64), "no expert in any slot"),
        "objects": (np.array([[object()] * 4]), "unreadable|dtype"),
    }


@pytest.mark.parametrize("name", bad_tables())
def test_bad_file_is_a_user_error(name: str, tmp_path: Path) -> None:
    table, message = bad_tables()[name]
    path = tmp_path / "bad.npz"
    np.savez(path, slot_expert=np.asarray(table))
    with pytest.raises(UserError, match=message) as caught:
        Placement.load(path, ranks=2)
    assert str(path) in str(caught.value)


def test_what_is_no_archive_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Placement.load(tmp_path / "none.npz", 1)
    path = tmp_path / "text.npz"
    path.write_text("hello")
    with pytest.raises(UserError, match="unreadable"):
        Placement.load(path, 1)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="unreadable"):
        Placement.load(path, 1)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match=r"keys \['other'\]"):
        Placement.load(path, 1)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        Placement.load(path, 1)

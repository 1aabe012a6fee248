"""Random histories of the epoch machine: see epoch_world. A failing seed is in the message, and fails again."""

from collections.abc import Sequence

import pytest

from experts.epoch.machine import Action, Attempt, EpochMachine, Event, Propose
from tests.experts.epoch.epoch_supervisor import wrong_in

HISTORIES, MANY = 10_000, 200_000


def test_histories() -> None:
    for seed in range(HISTORIES):
        wrong = wrong_in(seed)
        assert not wrong, f"seed {seed}: {wrong[:3]}"


@pytest.mark.slow
def test_many_histories() -> None:
    for seed in range(HISTORIES, MANY):
        wrong = wrong_in(seed)
        assert not wrong, f"seed {seed}: {wrong[:3]}"


_propose, _began, _tick = EpochMachine._propose, EpochMachine._began, EpochMachine.tick


def _same_number(machine: EpochMachine, now: float, event: Propose) -> list[Action]:
    machine.number = max(machine.number - 1, 0)
    return _propose(machine, now, event)


def _no_word(machine: EpochMachine, now: float, attempt: Attempt, why: str) -> list[Action]:
    attempt.why = why
    return machine._void(attempt)


def _one_is_enough(machine: EpochMachine, attempt: Attempt, rank: int) -> list[Action]:
    attempt.began |= attempt.members
    return _began(machine, attempt, rank)


def _for_ever(machine: EpochMachine, now: float, attempt: Attempt) -> list[Action]:
    return []


def _any_attempt(machine: EpochMachine, now: float, events: Sequence[Event]) -> list[Action]:
    number = machine.number
    same = [event._replace(number=number) if hasattr(event, "number") else event for event in events]
    return _tick(machine, now, same)


GUARDS = {
    "numbers are never used twice": ("_propose", _same_number),
    "a planned attempt is given up by its members' word": ("_give_up", _no_word),
    "all have begun a step before an epoch counts": ("_began", _one_is_enough),
    "every wait has a deadline": ("_late", _for_ever),
    "what comes of an earlier attempt says nothing": ("tick", _any_attempt),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpochMachine, *GUARDS[guard])
    assert any(wrong_in(seed) for seed in range(HISTORIES)), f"no history needs the guard: {guard}"

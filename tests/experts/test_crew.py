"""Crews on torch's own threads; which number is best is the ladder's, and tested there."""

import contextlib
import threading
from collections.abc import Callable

import pytest
import torch

from experts.crew import GRAIN, Crew, most_threads
from experts.errors import UserError
from experts.machine import cores


def in_a_thread(work: Callable[[], None]) -> None:
    """torch's number belongs to a thread: this one's stays as it is."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_small_work_is_done_by_one_thread_and_large_work_starts_with_all() -> None:
    seen: list[int] = []

    def work() -> None:
        crew = Crew(4)
        for amount in (0, GRAIN, 2 * GRAIN - 1, 2 * GRAIN, 3 * GRAIN, 100 * GRAIN):
            with crew.part("experts", amount):
                seen.append(torch.get_num_threads())

    in_a_thread(work)
    assert seen == [1, 1, 1, 2, 2, 4]


def test_parts_nest_and_leave_what_was_before() -> None:
    seen: list[int] = []

    def work() -> None:
        torch.set_num_threads(3)
        crew = Crew(2)
        with crew.part("attention", 100 * GRAIN):
            seen.append(torch.get_num_threads())
            with contextlib.suppress(KeyError), crew.aside(), crew.part("experts", 0):
                seen.append(torch.get_num_threads())
                raise KeyError
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())
        assert crew.running is None

    in_a_thread(work)
    assert seen == [2, 1, 2, 3]


def test_what_is_set_aside_is_nobodys_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("experts.crew.time.perf_counter", lambda: now[0])
    noted: list[tuple[float, float]] = []
    monkeypatch.setattr("experts.crew.Ladder.note", lambda ladder, seconds, work: noted.append((seconds, work)))

    def work() -> None:
        crew = Crew(1)
        with crew.part("attention", 10):
            now[0] += 1.0
            with crew.aside():
                now[0] += 100.0
                with crew.part("experts", 20):
                    now[0] += 5.0
                now[0] += 100.0
            now[0] += 2.0

    in_a_thread(work)
    assert noted == [(5.0, 20), (3.0, 10)]


def test_all_threads_always_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENYARD_THREADS", "all")
    seen: list[int] = []

    def work() -> None:
        with Crew(3).part("experts", 0):
            seen.append(torch.get_num_threads())

    in_a_thread(work)
    assert seen == [3]
    monkeypatch.setenv("TOKENYARD_THREADS", "many")
    with pytest.raises(UserError, match="TOKENYARD_THREADS"):
        Crew(1)


@pytest.mark.parametrize(("text", "most"), [("", cores()), ("1", 1), (" 1,2 ", 1), ("100000", cores())])
def test_the_users_number_is_an_upper_bound(monkeypatch: pytest.MonkeyPatch, text: str, most: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert most_threads() == most


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_no_number_of_threads(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(UserError, match="OMP_NUM_THREADS"):
        most_threads()

"""Hubs: who meets whom over which connection, who is refused, and what ends. Of both forms, and of pairs that mix them."""

import gc
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from experts.epoch.membership import HERE, Member
from experts.exchange.links import hub as hub_module
from experts.exchange.links.circle import Rows, Trouble
from experts.exchange.links.frame import Outcome
from experts.exchange.links.hub import Hub
from experts.exchange.links.plain import PlainLines
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from experts.hello import SECONDS
from experts.placement import Placement
from tests.experts.exchange.links.hubs import (
    SECRET,
    SIZES,
    Make,
    families,
    lost,
    maker,
    meet,
    members,
    silent_at,
    speak,
)
from tests.experts.exchange.links.nets import FORMS, MIXES, begun, lines_of, row, trouble_of
from tests.patience import PATIENCE, wait_until

all_mixes = pytest.mark.parametrize("forms", MIXES, ids="-".join)
both_forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def make() -> Iterator[Make]:
    with maker() as made:
        yield made


@all_mixes
def test_hubs_meet_and_the_next_epoch_uses_the_same_connections(make: Make, forms: tuple[str, str]) -> None:
    hubs = [make(form, rank) for rank, form in enumerate((*forms, "plain"))]
    for epoch in (1, 2, 5):
        circles = meet(epoch, *hubs)
        speak(epoch, circles)
        for circle in circles:
            circle.abort()
    assert [families(hub) for hub in hubs] == [[socket.AF_UNIX] * 2] * 3


@all_mixes
def test_only_newcomers_are_met_beside_running_steps(make: Make, forms: tuple[str, str]) -> None:
    old, other, new = (make(form, rank) for rank, form in enumerate((*forms, "plain")))
    running = meet(1, old, other)
    who, keys = members(2, old, other, new), {(0, 0), (1, 0)}
    waiting = [begun(hub.circle, who, PATIENCE, PATIENCE, keys) for hub in (old, other)]
    speak(1, running)
    newcomer = new.circle(who, PATIENCE, PATIENCE)
    speak(2, [*(one.result(PATIENCE) for one in waiting), newcomer])


@both_forms
def test_nobody_at_the_port_is_said_at_once_and_who_does_not_call_after_a_while(make: Make, form: str) -> None:
    hub = make(form, 1)
    with socket.create_server((HERE, 0)) as closed:
        port = closed.getsockname()[1]
    assert "rank 2: " in lost(hub, members(1, hub, Member(2, "both", exchange_port=port)))
    assert lost(hub, members(2, Member(0, "both", exchange_port=port), hub), 0.1) == "rank 0 has not called in time"


@both_forms
def test_a_rank_that_has_links_and_does_not_come_is_named(make: Make, form: str) -> None:
    hub, other = make(form, 0), make("plain", 1)
    assert lost(hub, members(1, hub, other), 0.1) == "the group did not come together: rank 1 has not come within 0.1 s"
    speak(2, meet(2, hub, other))


@both_forms
@pytest.mark.parametrize("phase", ["is called", "calls", "meets"])
def test_a_later_epochs_meeting_ends_an_earlier_one_that_waits(make: Make, form: str, phase: str) -> None:
    low, hub, high = make("plain", 0), make(form, 1), make("plain", 2)
    with socket.create_server((HERE, 0)) as deaf:
        nobody = Member(3, "both", exchange_port=deaf.getsockname()[1])
        early = {
            "is called": members(1, low, hub),
            "calls": members(1, hub, nobody),
            "meets": members(1, hub, high),
        }[phase]
        waiting = begun(lost, hub, early)
        if phase == "meets":
            wait_until(lambda: families(hub), "a link to the rank that does not come")
        time.sleep(0.1)
        assert not waiting.done()
        who = members(2, hub, high)
        later = begun(hub.circle, who, PATIENCE, PATIENCE)
        assert "given up while its members met" in waiting.result(PATIENCE)
        circle = high.circle(who, PATIENCE, PATIENCE)
        speak(2, [later.result(PATIENCE), circle])
        assert lost(hub, early) == "epoch 2 is being met for"


def block(tokens: int) -> Rows:
    """For expert 1, which rank 1 holds."""
    ids = torch.tensor([[1, -1]] * tokens, dtype=torch.int32)
    return Rows(torch.ones(tokens, SIZES.hidden), ids, torch.ones(tokens, SIZES.top_k))


@all_mixes
def test_a_link_that_was_ended_in_the_middle_is_made_anew(make: Make, forms: tuple[str, str]) -> None:
    hubs = [make(form, rank) for rank, form in enumerate(forms)]
    first, other = meet(1, *hubs)
    tables = Tables(Placement.first(1, 2, 2, 1), members(1, *hubs), SplitPolicy())
    first.step(0, 0, (1024, 0), 0)
    sending = begun(lambda: trouble_of(first.dispatch, 0, block(1024), tables, None))
    time.sleep(0.1)
    assert not sending.done()
    first.abort()
    assert sending.result(PATIENCE).outcome == Outcome.OVER
    other.abort()
    speak(2, meet(2, *hubs))
    assert [families(hub) for hub in hubs] == [[socket.AF_UNIX] * 2] * 2


@all_mixes
def test_a_rank_that_was_started_again_takes_the_place_of_its_link(make: Make, forms: tuple[str, str]) -> None:
    hubs = [make(form, rank) for rank, form in enumerate(forms)]
    circles = meet(1, *hubs)
    speak(1, circles)
    again = make(forms[1], 1, incarnation=1)  # before anyone has noticed the end of the first
    circles = meet(2, hubs[0], again)
    speak(2, circles)
    assert families(hubs[0]) == [socket.AF_UNIX] * 2


def own_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name in ("links", "link-hello", "life"))


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@all_mixes
def test_close_ends_all_and_leaves_nothing(forms: tuple[str, str]) -> None:
    lines = [lines_of(form) for form in forms]
    wait_until(lambda: not own_threads(), "what tests before have left ends")
    before = descriptors()
    hubs = [Hub(HERE, SECRET, rank, 0, SIZES, each) for rank, each in enumerate(lines)]
    circles = meet(1, *hubs)
    silent = [*silent_at(hubs[0])]
    waiting = begun(trouble_of, circles[1].header, row(), None)
    met = begun(lost, hubs[0], members(2, hubs[0], hubs[1]))
    time.sleep(0.1)
    began = time.monotonic()
    hubs[0].close()
    assert waiting.result(PATIENCE).outcome in (Outcome.DEAD, Outcome.LEFT)
    assert "given up" in met.result(PATIENCE)
    hubs[1].close()
    wait_until(lambda: not own_threads(), "no thread is left")
    assert time.monotonic() - began < SECONDS, "nobody waits for what is silent"
    for link in silent:
        link.close()
    del hubs, circles, waiting, met
    wait_until(lambda: descriptors() <= before, "no descriptor is left")


def test_it_is_said_once_that_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "native_lines", lambda: None)
    hub_module._say_that_it_is_slow.cache_clear()
    with caplog.at_level(logging.WARNING):
        hubs = [Hub(HERE, SECRET, rank, 0, SIZES) for rank in range(2)]
    try:
        assert all(isinstance(hub._lines, PlainLines) for hub in hubs)
        assert [record.message for record in caplog.records] == ["tokens travel without C kernels, which is slower"]
    finally:
        for hub in hubs:
            hub.close()


def _without_kernels(pipe: Any) -> None:
    os.environ["TOKENYARD_KERNELS"] = "torch"
    hub = Hub(HERE, SECRET, 1, 0, SIZES)
    pipe.send((hub.port, type(hub._lines).__name__))
    who = pipe.recv()
    circle = hub.circle(who, PATIENCE, PATIENCE)
    pipe.send(circle.header(row(decode=1), None))
    try:
        circle.header(row(decode=1), None)
    except Trouble as trouble:
        pipe.send(trouble.outcome)


@both_forms
def test_a_process_without_kernels_meets_others(make: Make, form: str) -> None:
    """Others give it a word of their life, of which it can make nothing."""
    hub = make(form, 0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_without_kernels, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        port, name = here.recv()
        assert name == "PlainLines"
        who = members(1, hub, Member(1, "both", exchange_port=port))
        here.send(who)
        circle = hub.circle(who, PATIENCE, PATIENCE)
        rows = [row(decode=m) for m in range(2)]
        assert circle.header(rows[0], None) == rows
        assert here.recv() == rows
        circle.abort()
        assert here.recv() == Outcome.LEFT
    finally:
        process.kill()
        process.join(PATIENCE)
        here.close()

"""Policies from outside, in processes of their own: whatever they do, they are refused by name and touch nothing."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.balance.cost import CostModel
from cluster.balance.foreign.policy import ForeignPolicy
from cluster.balance.foreign.wire import Nonsense, pack, read_placement, unpack
from cluster.balance.policies.base import Policy, PolicyFailed, Situation
from cluster.balance.policies.none import NoPolicy
from cluster.balance.policies.registry import ask, load_policy
from cluster.balance.shape import ClusterShape
from cluster.simulate.replay import ReplaySettings, replay
from experts.errors import UserError
from experts.placement import Placement
from tests.patience import wait_until

MINE = """
import os, sys, time
import numpy as np
from cluster.balance.policies.base import Policy
from experts.placement import Placement

class Stays(Policy):
    plan = lambda self, s: s.current
class Turns(Policy):
    name, split = "turns", "even"
    def plan(self, s):
        assert s.shape.dead == frozenset({3}) and s.shape.speeds == (1.0, 1.0, 1.0, 0.5) and s.future is None
        print("printed")
        return Placement(9, 4, 3, np.roll(s.current.slot_expert, 1, axis=1))
class Exits(Stays): plan = lambda self, s: sys.exit(7)
class Ends(Stays): plan = lambda self, s: (os.write(2, b"one\\nlast words\\n"), os._exit(7))
class Killed(Stays): plan = lambda self, s: os.kill(os.getpid(), 9)
class Hangs(Stays): plan = lambda self, s: time.sleep(1000)
class Leaves(Stays): plan = lambda self, s: os.fork() and os._exit(3) or time.sleep(1000)
class Nothing(Stays): plan = lambda self, s: None
class Floods(Stays): plan = lambda self, s: [os.write(1, b"x" * (1 << 20)) for _ in range(200)] and s.current
class Writes(Stays): plan = lambda self, s: s.history.fill(0) or s.current
class Scribbles(Stays):
    def plan(self, s):
        for fd in range(3, 200):
            try: os.write(fd, b"\\xff" * 99)
            except OSError: pass
class Lies(Stays):
    def plan(self, s):
        made = object.__new__(Placement)
        for name, value in dict(version=1, ranks=4, slots_per_rank=3, slot_expert=np.zeros((2, 12), dtype=np.int64)).items():
            object.__setattr__(made, name, value)
        return made
class Odd(Stays): split = "Exact"
class Busy(Stays): plan = lambda self, s: sum(range(10**13))
"""
SITUATION = Situation(
    np.ones((5, 2, 9), dtype=np.int64), Placement.first(2, 9, 4, 3),
    ClusterShape(4, 3, dead=frozenset({3}), speeds=(1.0, 1.0, 1.0, 0.5)), CostModel(), 20,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path)


def test_a_policy_sees_the_situation_and_its_placement_comes_back(folder: str) -> None:
    with closing(load_policy("mine:Turns", folder=folder)) as policy:
        assert (policy.name, policy.split, policy.clairvoyant) == ("turns", "even", False)
        placed = policy.plan(SITUATION)
        assert placed.slot_expert.tolist() == np.roll(SITUATION.current.slot_expert, 1, axis=1).tolist()
        assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Exits", "raised SystemExit: 7"),
        ("Ends", "exit code 7.*last words"),
        ("Killed", "killed by signal 9"),
        ("Leaves", "exit code 3"),
        ("Nothing", "returned NoneType"),
        ("Scribbles", "answered with"),
        ("Lies", r"\(2, 1, 4, 3\) .*expected \(2, 9, 4, 3\)"),
        ("Floods", ""),
    ],
)
def test_whatever_a_policy_does_is_refused_by_name(kind: str, told: str, folder: str) -> None:
    with closing(load_policy(f"mine:{kind}", folder=folder)) as policy:
        if told:
            with pytest.raises(PolicyFailed, match=told) as caught:
                ask(policy, SITUATION)
            assert f"'mine:{kind}'" in str(caught.value)
        else:
            assert policy.plan(SITUATION).slot_expert.tolist() == SITUATION.current.slot_expert.tolist()


def test_what_hangs_is_killed_and_started_again_after_a_pause(folder: str) -> None:
    clock = [0.0]
    policy = ForeignPolicy("mine:Hangs", folder, 0.3, now=lambda: clock[0])
    with closing(policy):
        for pause in (1.0, 2.0):
            with pytest.raises(PolicyFailed, match=r"'mine:Hangs' did not answer within 0\.3 s"):
                policy.plan(SITUATION)
            clock[0] += pause - 0.1
            with pytest.raises(PolicyFailed, match="did not answer"):
                policy.plan(SITUATION)
            assert policy._process is None, "the pause is not over, and nothing was started"
            clock[0] += 0.1


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("mine:None_", "importable"),
        ("nowhere:X", "importable"),
        ("mine:np", "not a policy"),
        ("mine:Odd", "split 'Exact', expected exact or even"),
    ],
)
def test_what_can_not_be_loaded_is_refused_by_name(source: str, told: str, folder: str) -> None:
    with pytest.raises(UserError, match=f"--eplb-policy: found policy '{source}'.*{told}"):
        load_policy(source, "--eplb-policy", folder)


def test_the_users_folder_comes_last(folder: str, tmp_path: Path) -> None:
    for name in ("experts", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    load_policy("mine:Stays", folder=folder).close()


def test_writing_into_what_a_policy_gets_changes_no_score(folder: str) -> None:
    class Wipes(Policy):
        name = "wipes"

        def plan(self, situation: Situation) -> Placement:
            situation.history.fill(0)
            return situation.current

    loads = np.random.default_rng(0).poisson(50, (60, 2, 9))
    with closing(load_policy("mine:Writes", folder=folder)) as writes:
        scores = [
            replay(loads, ClusterShape(4, 3), policy, ReplaySettings()).excess
            for policy in (NoPolicy(), writes, NoPolicy())
        ]
    assert scores[0] == scores[1] == scores[2]
    with pytest.raises(PolicyFailed, match="'wipes' raised ValueError"):
        replay(loads, ClusterShape(4, 3), Wipes(), ReplaySettings())


PARENT = """
import os, signal, sys, threading
from cluster.balance.policies.registry import load_policy
from tests.cluster.balance.test_foreign_policies import SITUATION
policy = load_policy("mine:Busy", folder=sys.argv[1], seconds=1000)
threading.Thread(target=policy.plan, args=(SITUATION,), daemon=True).start()
print(policy._process.process.pid, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_its_process_ends_with_ours_even_when_it_never_returns_to_python(folder: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    used = child.cpu_times().user
    wait_until(lambda: child.cpu_times().user > used + 0.2, "the policy at work")
    parent.stdin.write("\n")
    parent.stdin.close()
    parent.wait()
    wait_until(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the policy's process"
    )


def test_closing_releases_whoever_waits_for_an_answer(folder: str) -> None:
    policy = ForeignPolicy("mine:Hangs", folder, 1000.0)
    told: list[str] = []

    def waits() -> None:
        try:
            policy.plan(SITUATION)
        except PolicyFailed as failed:
            told.append(str(failed))

    thread = threading.Thread(target=waits)
    thread.start()
    time.sleep(0.2)
    policy.close()
    thread.join(60)
    assert told, "the thread still waits"


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\xc7\x05\x01abcde", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000]
)
def test_bytes_that_are_no_message_are_nonsense(body: bytes) -> None:
    with pytest.raises(Nonsense):
        unpack(body)


@pytest.mark.parametrize("table", [[1, 2], np.zeros(3, dtype=np.int64), np.zeros((0, 4), dtype=np.int64), None])
def test_tables_that_are_none_are_nonsense(table: object) -> None:
    message = {"version": 1, "ranks": 1, "slots_per_rank": 1, "slot_expert": table}
    with pytest.raises(Nonsense):
        read_placement(unpack(pack(message)[8:]))

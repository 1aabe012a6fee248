"""Real actors: a rank's process leaves and another takes its seat while clients stream; no token changes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from experts.errors import UserError
from experts.worker.remote import wait
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
from tests.e2e.conftest import Starter
from tests.patience import PATIENCE

QUESTIONS = [f"{a}+{b}=?" for a, b in ((123, 456), (777, 288), (905, 95), (310, 641), (58, 999), (444, 555))]


@pytest.mark.slow
def test_a_rank_is_exchanged_under_streams(start_cluster: Starter) -> None:
    options = {"attention_workers": 1, "expert_workers": 3, "num_redundant_experts": 35, "eplb_interval": 6}
    with start_cluster(checkpoint_path(), **options) as cluster, Client(f"127.0.0.1:{cluster.grpc_port}") as client:

        def answer(question: str) -> tuple[int, ...]:
            stream = client.chat_stream([{"role": "user", "content": question}], temperature=0.0, max_tokens=48)
            return tuple(token for chunk in stream for token in chunk.token_ids)

        quiet = {question: answer(question) for question in QUESTIONS}
        done, wrong, asked = threading.Event(), [], []

        def load(start: int) -> None:
            turn = start
            while not done.is_set():
                question = QUESTIONS[turn % len(QUESTIONS)]
                got = answer(question)
                asked.append(question)
                if got != quiet[question]:
                    wrong.append((question, got))
                turn += 1

        supervisor = cluster.supervisor
        before = {worker["rank"]: worker["pid"] for worker in client.status()["workers"]}
        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, start) for start in range(4)]
            try:
                wait(supervisor.release(1))
                while_away = client.status()
                wait(supervisor.admit(1))
                with pytest.raises(UserError, match="seat 1"):
                    wait(supervisor.admit(1))
                with pytest.raises(UserError, match="rank 3"):
                    wait(supervisor.release(3))
                for _ in range(20):
                    decision = wait(supervisor.rebalance(False))
                    if not decision["moves"]:
                        break
            finally:
                done.set()
            for one in loads:
                one.result(2 * PATIENCE)
        status = client.status(events=True)
        assert not wrong
        assert len(asked) >= 4
        assert sorted(worker["rank"] for worker in while_away["workers"]) == [0, 2, 3]
        assert while_away["epoch"] == 2
        assert status["epoch"] == 3
        assert status["state"] == "ready"
        now = {worker["rank"]: worker["pid"] for worker in status["workers"]}
        assert now[1] != before[1]
        assert {rank: now[rank] for rank in (0, 2, 3)} == {rank: before[rank] for rank in (0, 2, 3)}
        assert not psutil.pid_exists(before[1])
        assert [e["kind"] for e in status["events"] if e["kind"] in ("left", "joined")] == ["left", "joined"]
        placement = client.placement()
        slots = list(placement.slot_expert)
        width = placement.slots_per_rank
        assert any(expert >= 0 for expert in slots[width : 2 * width]), "the new process got experts"
        time.sleep(0.5)  # idle ranks sleep, and are woken for their last step
        wait(supervisor.release(0), PATIENCE)
        assert client.status()["state"] == "ready"
        assert answer(QUESTIONS[0]) == quiet[QUESTIONS[0]]

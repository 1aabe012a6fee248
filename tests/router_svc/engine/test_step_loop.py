"""The engine with a real model in one process: transformers' tokens under batching, chunks, prefix hits and preemption."""

import queue
import random
import time
from pathlib import Path

import pytest

from router_svc.engine.prefix import PrefixChain
from router_svc.request import Cancel, Code, EngineRequest, FailedEvent, Hold, TokenEvent
from tests import checkpoints
from tests.engines import Harness, running, sampling, tokens_of
from tests.patience import PATIENCE, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3_moe", tmp_path_factory.mktemp("engine") / "qwen3_moe")


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"{seed}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(length))


def greedy(folder: Path, ids: tuple[int, ...], count: int) -> list[int]:
    tokens, logits = checkpoints.reference_greedy(folder, list(ids), count)
    assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
    return tokens


PROMPTS = [prompt(length, 100 + length) for length in (1, 5, 16, 63, 200, 301)]


@pytest.mark.parametrize(
    "config",
    [{}, {"max_num_batched_tokens": 23}, {"kv_blocks": 46}, {"max_num_seqs": 2}, {"enable_prefix_caching": False}],
    ids=["plain", "chunked", "preempting", "two_at_once", "no_prefix"],
)
def test_greedy_tokens_are_transformers(folder: Path, config: dict[str, int | bool]) -> None:
    count = 40
    wanted = [greedy(folder, ids, count) for ids in PROMPTS]
    with running(folder, **config) as harness:
        requests = [EngineRequest(f"r{i}", ids, sampling(count)) for i, ids in enumerate(PROMPTS)]
        assert harness.complete(requests) == wanted
        harness.quiet()
        if config.get("kv_blocks"):
            assert harness.engine.stats().preemptions > 0


def test_prefix_is_reused_and_changes_nothing(folder: Path) -> None:
    ids = PROMPTS[-1]
    with running(folder) as harness:
        first = harness.complete([EngineRequest("a", ids, sampling(8))])
        again = harness.complete([EngineRequest("b", ids, sampling(8))])
        assert first == again == [greedy(folder, ids, 8)]
        stats = harness.engine.stats()
        assert stats.prefix_hits == (len(ids) - 1) // 16 * 16


def test_choices_share_the_prompt_and_draw_apart(folder: Path) -> None:
    request = EngineRequest("n", PROMPTS[4], sampling(12, temperature=1.0, seed=5, n=3))
    with running(folder) as harness:
        together = harness.complete([request])
        assert len({tuple(tokens) for tokens in together}) == 3
        assert harness.engine.stats().prefix_hits == 2 * 192


def test_a_seed_draws_alike_alone_and_in_a_full_batch(folder: Path) -> None:
    fields = {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "presence_penalty": 0.3}
    requests = [EngineRequest(f"r{i}", ids, sampling(20, seed=i, **fields)) for i, ids in enumerate(PROMPTS)]
    with running(folder) as harness:
        together = harness.complete(requests)
    with running(folder, max_num_seqs=1) as harness:
        alone = [harness.complete([request])[0] for request in requests]
    assert together == alone


def test_stop_ids_eos_and_length_end_a_choice(folder: Path) -> None:
    tokens = greedy(folder, PROMPTS[1], 12)
    with running(folder) as harness:
        harness.engine.post(EngineRequest("stop", PROMPTS[1], sampling(40, stop_token_ids=(tokens[4],))))
        harness.engine.post(
            EngineRequest("eos", PROMPTS[1], sampling(40, eos_token_ids=(tokens[6],), ignore_eos=False))
        )
        harness.engine.post(EngineRequest("length", PROMPTS[1], sampling(3)))
        got = harness.collect(3)
    ends = {name: got[name, 0][-1] for name in ("stop", "eos", "length")}
    assert tokens_of(got["stop", 0]) == tokens[: tokens.index(tokens[4]) + 1]
    assert tokens_of(got["eos", 0]) == tokens[: tokens.index(tokens[6]) + 1]
    assert [e.finish_reason for e in ends.values() if isinstance(e, TokenEvent)] == ["stop", "stop", "length"]


def test_logprobs_of_output_and_prompt(folder: Path) -> None:
    ids = PROMPTS[2]
    expected = checkpoints.reference_logits(folder, list(ids)).log_softmax(-1)
    for budget in (256, 7):
        with running(folder, max_num_batched_tokens=budget) as harness:
            harness.engine.post(EngineRequest("p", ids, sampling(1, logprobs=2, prompt_logprobs=1)))
            (event,) = harness.collect(1)["p", 0]
        assert isinstance(event, TokenEvent)
        assert event.prompt_logprobs[0] is None
        for place in range(1, len(ids)):
            entry = event.prompt_logprobs[place]
            assert entry is not None
            assert entry.token_id == ids[place]
            assert entry.logprob == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-3)
        assert event.logprobs[0].logprob == pytest.approx(float(expected[-1].max()), abs=1e-3)
        assert len(event.logprobs[0].top) == 2


def wait_for_tokens(harness: Harness, request_id: str, count: int) -> None:
    seen = 0
    while seen < count:
        event = harness.events.get(timeout=PATIENCE)
        seen += event.request_id == request_id


def test_cancel_frees_the_blocks(folder: Path) -> None:
    with running(folder) as harness:
        harness.engine.post(EngineRequest("c", PROMPTS[3], sampling(900, n=2)))
        wait_for_tokens(harness, "c", 4)
        harness.engine.post(Cancel("c"))
        harness.quiet()
        harness.events = queue.SimpleQueue()
        assert harness.complete([EngineRequest("c", PROMPTS[1], sampling(3))]) == [greedy(folder, PROMPTS[1], 3)]


def test_an_id_may_come_again_right_after_its_cancel(folder: Path) -> None:
    wanted = greedy(folder, PROMPTS[1], 6)
    with running(folder) as harness:
        for attempt in range(40):
            harness.engine.post(EngineRequest("same", PROMPTS[1], sampling(900, n=2), attempt=attempt))
            if attempt % 3:
                while harness.events.get(timeout=PATIENCE).attempt != attempt:
                    continue
            harness.engine.post(Cancel("same"))
        harness.engine.post(EngineRequest("same", PROMPTS[1], sampling(6), attempt=99))
        got: list[int] = []
        while len(got) < 6:
            event = harness.events.get(timeout=PATIENCE)
            assert isinstance(event, TokenEvent), event
            got.extend(event.token_ids if event.attempt == 99 else ())
        assert got == wanted
        harness.quiet()


def test_deadline_ends_running_and_held_requests(folder: Path) -> None:
    with running(folder) as harness:
        harness.engine.post(EngineRequest("run", PROMPTS[1], sampling(1000), deadline=0.3))
        harness.engine.post(EngineRequest("held", PROMPTS[1], sampling(1000), deadline=0.3))
        harness.engine.post(Hold("held", True))
        got = harness.collect(2)
        assert {got[name, -1][0].code for name in ("run", "held")} == {Code.DEADLINE_EXCEEDED}  # type: ignore[union-attr]
        harness.quiet()


def test_held_request_pauses_alone_and_resumes(folder: Path) -> None:
    with running(folder) as harness:
        harness.engine.post(EngineRequest("h", PROMPTS[1], sampling(200)))
        wait_for_tokens(harness, "h", 3)
        harness.engine.post(Hold("h", True))
        harness.engine.post(EngineRequest("o", PROMPTS[2], sampling(30)))
        seen = []
        while not seen or seen[-1].request_id != "o" or seen[-1].finish_reason is None:  # type: ignore[union-attr]
            seen.append(harness.events.get(timeout=PATIENCE))
        assert sum(event.request_id == "h" for event in seen) < 100

        def stands_still() -> bool:
            steps = harness.engine.stats().steps
            time.sleep(0.1)
            return harness.engine.stats().steps == steps

        wait_until(stands_still, "a held request does not keep the loop running")
        harness.engine.post(Hold("h", False))
        last = harness.collect(1)["h", 0][-1]
        assert isinstance(last, TokenEvent)
        assert last.completion_tokens == 200


def test_full_queue_refuses_with_a_hint(folder: Path) -> None:
    with running(folder, max_num_seqs=1, max_queue_len=2) as harness:
        harness.engine.post(EngineRequest("first", PROMPTS[1], sampling(500)))
        wait_for_tokens(harness, "first", 1)
        for i in range(4):
            harness.engine.post(EngineRequest(f"q{i}", PROMPTS[1], sampling(5)))
        refused = []
        while len(refused) < 2:
            event = harness.events.get(timeout=PATIENCE)
            if isinstance(event, FailedEvent):
                refused.append(event)
        assert [e.code for e in refused] == [Code.RESOURCE_EXHAUSTED] * 2
        assert refused[0].retry_after
        for name in ("first", "q0", "q1"):
            harness.engine.post(Cancel(name))
        harness.quiet()


def test_priority_goes_before_arrival(folder: Path) -> None:
    with running(folder, max_num_seqs=1) as harness:
        harness.engine.post(EngineRequest("first", PROMPTS[1], sampling(60)))
        wait_for_tokens(harness, "first", 1)
        harness.engine.post(EngineRequest("late", PROMPTS[1], sampling(2), priority=5))
        harness.engine.post(EngineRequest("urgent", PROMPTS[1], sampling(2), priority=-1))
        order = []
        while len(order) < 3:
            event = harness.events.get(timeout=PATIENCE)
            if isinstance(event, TokenEvent) and event.finish_reason:
                order.append(event.request_id)
        assert order == ["first", "urgent", "late"]


def test_failure_ends_everything_once(folder: Path) -> None:
    with running(folder) as harness:
        harness.engine.post(EngineRequest("a", PROMPTS[1], sampling(1000)))
        harness.engine.post(EngineRequest("b", PROMPTS[2], sampling(1000, n=2)))
        wait_for_tokens(harness, "b", 2)
        harness.engine.fail("rank 1 (expert) died")
        got = harness.collect(2)
        assert {key for key in got if key[1] == -1} == {("a", -1), ("b", -1)}
        harness.engine.post(EngineRequest("c", PROMPTS[1], sampling(5)))
        (late,) = harness.collect(1)["c", -1]
        assert isinstance(late, FailedEvent)
        assert late.code == Code.UNAVAILABLE
        assert "rank 1" in late.message


def test_nan_of_one_request_reaches_no_other(folder: Path) -> None:
    """A prompt whose keys and values are no numbers is refused; neither its neighbours nor who gets its blocks notice."""
    others = PROMPTS[:4]
    wanted = [greedy(folder, ids, 30) for ids in others]
    used = {token for tokens in (*others, *wanted, PROMPTS[4]) for token in tokens}
    bad = next(token for token in range(1, checkpoints.VOCABULARY) if token not in used)
    with running(folder, kv_blocks=26, max_num_batched_tokens=23) as harness:
        harness.engine._model._weights.embed[bad] = float("nan")
        for _ in range(3):  # the first blocks go to the bad request, which is several steps in its prompt
            harness.engine.post(EngineRequest("bad", (bad, *PROMPTS[4][:160]), sampling(5)))
            for i, ids in enumerate(others):
                harness.engine.post(EngineRequest(f"r{i}", ids, sampling(30)))
            got = harness.collect(1 + len(others))
            refused = got["bad", -1][0]
            assert isinstance(refused, FailedEvent)
            assert "finite" in refused.message
            assert [tokens_of(got[f"r{i}", 0]) for i in range(len(others))] == wanted
            harness.quiet()
        assert harness.engine._pages.match(PrefixChain(16).keys([bad, *PROMPTS[4][:160]], 10)) == []

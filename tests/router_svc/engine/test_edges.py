"""The engine at its edges: a cache that one request fills, tiny budgets, preemption with choices, eviction, slow readers."""

import random
from pathlib import Path

import pytest

from experts.epoch.agreement import StepHeader, StepWish
from experts.errors import RankLost
from router_svc.request import Cancel, Code, EngineRequest, FailedEvent, Hold
from tests import checkpoints
from tests.engines import Harness, running, sampling, tokens_of
from tests.patience import PATIENCE

BLOCK = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("mixtral", tmp_path_factory.mktemp("edges") / "mixtral")


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"edge {seed}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(length))


DRAWN = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.2}


def test_one_request_may_fill_the_cache_to_its_last_token(folder: Path) -> None:
    ids = prompt(3 * BLOCK, 1)
    with running(folder) as harness:
        (wanted,) = harness.complete([EngineRequest("roomy", ids, sampling(BLOCK))])
    with running(folder, kv_blocks=4) as harness:
        for number in range(2):
            assert harness.complete([EngineRequest(f"full{number}", ids, sampling(BLOCK))]) == [wanted]
        harness.engine.post(EngineRequest("over", ids, sampling(BLOCK + 1)))
        (refused,) = harness.collect(1)["over", -1]
        assert isinstance(refused, FailedEvent)
        assert refused.code == Code.INVALID_ARGUMENT
        assert "64" in refused.message
        harness.quiet()


def test_requests_that_fill_the_cache_take_turns(folder: Path) -> None:
    requests = [EngineRequest(f"r{i}", prompt(40, i), sampling(24, seed=i, **DRAWN, n=2)) for i in range(5)]
    with running(folder) as harness:
        wanted = [harness.complete([request]) for request in requests]
    with running(folder, kv_blocks=5, max_num_batched_tokens=19) as harness:
        together = harness.complete(requests)
        assert [together[i : i + 2] for i in range(0, 10, 2)] == wanted
        assert harness.engine.stats().preemptions > 0
        harness.quiet()


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_budgets_smaller_than_the_batch(folder: Path, budget: int) -> None:
    requests = [
        EngineRequest(f"r{i}", prompt(5 + i, i), sampling(6, logprobs=1, prompt_logprobs=1, n=2)) for i in range(4)
    ]
    with running(folder) as harness:
        wanted = harness.complete(requests)
    with running(folder, max_num_batched_tokens=budget) as harness:
        assert harness.complete(requests) == wanted
        harness.quiet()


def test_evicted_prefixes_are_computed_again(folder: Path) -> None:
    shared, others = prompt(4 * BLOCK, 7), [prompt(5 * BLOCK, 20 + i) for i in range(3)]
    with running(folder, kv_blocks=8) as harness:
        (wanted,) = harness.complete([EngineRequest("a", shared, sampling(4))])
        assert harness.complete([EngineRequest("b", shared, sampling(4))]) == [wanted]
        hits = harness.engine.stats().prefix_hits
        assert hits == 3 * BLOCK
        for number, ids in enumerate(others):
            harness.complete([EngineRequest(f"o{number}", ids, sampling(4))])
        assert harness.complete([EngineRequest("c", shared, sampling(4))]) == [wanted]
        assert harness.engine.stats().prefix_hits == hits
        harness.quiet()


def test_a_prefix_is_right_after_its_maker_was_cancelled(folder: Path) -> None:
    ids = prompt(12 * BLOCK, 3)
    with running(folder, max_num_batched_tokens=24) as harness:
        (wanted,) = harness.complete([EngineRequest("alone", ids, sampling(8))])
    with running(folder, max_num_batched_tokens=24) as harness:
        for number in range(12):
            harness.engine.post(EngineRequest(f"gone{number}", ids, sampling(50, n=3)))
            harness.engine.post(EngineRequest(f"next{number}", ids, sampling(8)))
            harness.engine.post(Cancel(f"gone{number}"))
            got = harness.collect(1)
            assert tokens_of(got[f"next{number}", 0]) == wanted
        harness.quiet()


def test_readers_that_come_back_at_once_run_beyond_the_batch(folder: Path) -> None:
    requests = [EngineRequest(f"r{i}", prompt(9, i), sampling(40, seed=i, **DRAWN)) for i in range(9)]
    with running(folder) as harness:
        wanted = harness.complete(requests)
    with running(folder, max_num_seqs=2, max_num_batched_tokens=4) as harness:
        seen: dict[str, list[int]] = {request.request_id: [] for request in requests}
        held = set()
        for request in requests:
            harness.engine.post(request)
        while len(held) < 9:
            event = harness.events.get(timeout=PATIENCE)
            assert not isinstance(event, FailedEvent)
            seen[event.request_id].extend(event.token_ids)
            if event.request_id not in held:
                held.add(event.request_id)
                harness.engine.post(Hold(event.request_id, True))
        for request in requests:
            harness.engine.post(Hold(request.request_id, False))
        while any(len(tokens) < 40 for tokens in seen.values()):
            event = harness.events.get(timeout=PATIENCE)
            assert not isinstance(event, FailedEvent)
            seen[event.request_id].extend(event.token_ids)
        assert list(seen.values()) == wanted
        harness.quiet()


def test_a_step_that_fails_ends_what_ran_and_nothing_else(folder: Path) -> None:
    ids = prompt(3 * BLOCK, 5)
    with running(folder) as harness:
        (wanted,) = harness.complete([EngineRequest("before", ids, sampling(8))])
        model, broken = harness.engine._model, [True]
        forward = model.forward

        def failing(*arguments: object) -> object:
            if broken.pop():
                raise ZeroDivisionError("on purpose")
            model.forward = forward  # type: ignore[method-assign]
            return forward(*arguments)  # type: ignore[arg-type]

        broken.insert(0, False)
        model.forward = failing  # type: ignore[method-assign, assignment]
        harness.engine.post(EngineRequest("hit", ids, sampling(8, n=2)))
        (failed,) = harness.collect(1)["hit", -1]
        assert isinstance(failed, FailedEvent)
        assert failed.code == Code.INTERNAL
        for number in range(2):
            assert harness.complete([EngineRequest(f"after{number}", ids, sampling(8))]) == [wanted]
        harness.quiet()


def test_a_refusal_reaches_its_client_though_the_step_breaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are noted before the step's header, and forgotten with it."""

    def broken(wish: StepWish) -> StepHeader:
        raise RankLost(0, 1, "a member is gone")

    harness = Harness(folder, kv_blocks=4)
    monkeypatch.setattr(harness.engine._exchange, "open_step", broken)
    harness.engine.post(EngineRequest("late", prompt(8, 1), sampling(4), deadline=0.0))
    harness.engine.post(EngineRequest("over", prompt(80, 1), sampling(1)))
    harness.engine.post(EngineRequest("runs", prompt(8, 2), sampling(4)))
    harness.thread.start()
    harness.thread.join(PATIENCE)
    harness.engine.fail("a rank was lost")
    ends = [(request, end.code) for (request, _), (end,) in harness.collect(3).items() if isinstance(end, FailedEvent)]
    assert sorted(ends) == [
        ("late", Code.DEADLINE_EXCEEDED), ("over", Code.INVALID_ARGUMENT), ("runs", Code.UNAVAILABLE),
    ]  # fmt: skip
    assert harness.events.empty()


def test_cancelling_the_choice_whose_prompt_the_others_share(folder: Path) -> None:
    ids = prompt(6 * BLOCK, 9)
    fields = {"seed": 4, **DRAWN}
    with running(folder, max_num_batched_tokens=20) as harness:
        wanted = harness.complete([EngineRequest("all", ids, sampling(10, **fields, n=3))])
    with running(folder, max_num_batched_tokens=20) as harness:
        harness.engine.post(EngineRequest("rest", ids, sampling(10, **fields, n=3)))
        harness.engine.post(Cancel("rest", 0))
        got = harness.collect(2)
        assert [tokens_of(got["rest", choice]) for choice in (1, 2)] == wanted[1:]
        harness.quiet()
        assert harness.complete([EngineRequest("rest", ids, sampling(10, **fields, n=3))]) == wanted

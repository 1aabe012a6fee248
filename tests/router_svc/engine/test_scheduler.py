"""The scheduler and its pages as plain functions: budgets kept, blocks never shared wrongly or lost, everyone finishes."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.engine.config import EngineConfig
from router_svc.engine.kv_pages import KVPages
from router_svc.engine.prefix import PrefixChain
from router_svc.engine.scheduler import Scheduler
from router_svc.engine.sequence import Sequence
from router_svc.request import EngineRequest
from router_svc.sampling import Sampling

BLOCK = 4


def sequence(number: int, prompt: tuple[int, ...], priority: int = 0) -> Sequence:
    request = EngineRequest(f"r{number}", prompt, Sampling(max_tokens=8, seed=0), priority=priority)
    return Sequence(request, 0, (priority, number, 0), 0.0, list(prompt), PrefixChain(BLOCK))


def scheduler(blocks: int, seqs: int = 4, budget: int = 10, prefix: bool = True) -> Scheduler:
    config = EngineConfig(200, seqs, budget, 99, blocks, BLOCK, prefix)
    return Scheduler(config, KVPages(blocks))


def check(s: Scheduler, contents: dict[int, tuple[int, ...]]) -> None:
    """Blocks in use are counted once each; a block that two share holds the same tokens for both."""
    held = {block for q in s.running for block in q.blocks}
    assert s.pages.held == len(held)
    assert all(not q.blocks for q in s.waiting)
    for q in s.running:
        for place, block in enumerate(q.blocks[: q.computed // BLOCK]):
            tokens = tuple(q.tokens[: (place + 1) * BLOCK])
            assert contents[block] == tokens, "a block's content belongs to another prefix"


def run_step(s: Scheduler, granted: int, contents: dict[int, tuple[int, ...]]) -> list[Sequence]:
    """One step: the grant is kept, written blocks are noted, sampled sequences get a token."""
    decode, _ = s.wish()
    chunks = s.schedule(granted)
    assert len({id(c.sequence) for c in chunks}) == len(chunks)
    assert sum(c.count for c in chunks) <= decode + granted
    for chunk in chunks:
        q = chunk.sequence
        assert chunk.start == q.computed
        assert len(q.blocks) * BLOCK >= chunk.start + chunk.count
        for position in range(chunk.start, chunk.start + chunk.count):
            contents[q.blocks[position // BLOCK]] = tuple(q.tokens[: (position // BLOCK + 1) * BLOCK])
    sampled = [c.sequence for c in chunks if c.samples]
    for chunk in chunks:
        s.commit(chunk)
    return sampled


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(12, 40),
    prefix=st.booleans(),
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=12),
)
def test_everyone_finishes_and_nothing_is_lost(
    seed: int, blocks: int, prefix: bool, lengths: list[tuple[int, int]]
) -> None:
    rng = random.Random(seed)
    s, contents = scheduler(blocks, prefix=prefix), {}
    pending = [sequence(i, tuple(7 * (j // 8) for j in range(n)), p) for i, (n, p) in enumerate(lengths)]
    alive: list[Sequence] = []
    for step in range(3000):
        if pending and rng.random() < 0.4:
            alive.append(pending.pop())
            s.add(alive[-1])
        for q in run_step(s, rng.randrange(1, 11), contents):
            q.tokens.append(rng.randrange(3))
            if q.generated == 8:
                s.remove(q)
                alive.remove(q)
        check(s, contents)
        if alive and rng.random() < 0.05:
            victim = rng.choice(alive)
            if rng.random() < 0.5:
                s.remove(victim)
                alive.remove(victim)
            else:
                victim.held = not victim.held
        if step > 1500:
            for q in alive:
                q.held = False
        if not pending and not alive:
            break
    assert not alive
    assert s.pages.held == 0
    assert s.pages.available == blocks


def test_decodes_go_on_beside_a_long_prompt() -> None:
    s, contents = scheduler(60, budget=8), {}
    first = sequence(0, (1, 2, 3))
    s.add(first)
    assert run_step(s, 8, contents) == [first]
    first.tokens.append(5)
    s.add(sequence(1, tuple(range(100))))
    for _ in range(12):
        assert s.wish() == (1, 8)
        sampled = run_step(s, 8, contents)
        assert first in sampled
        first.tokens.append(6)


def test_the_order_is_priority_then_arrival() -> None:
    s = scheduler(60, seqs=1, budget=50)
    for q in (sequence(0, (1,), 3), sequence(1, (1,), 1), sequence(2, (1,), 1)):
        s.add(q)
    started = []
    for _ in range(3):
        (chunk,) = s.schedule(10)
        started.append(chunk.sequence.request.request_id)
        s.remove(chunk.sequence)
    assert started == ["r1", "r2", "r0"]


def test_a_shared_prefix_is_computed_once() -> None:
    s, contents = scheduler(60, budget=50), {}
    one, two = sequence(0, tuple(range(17))), sequence(1, tuple(range(17)))
    s.add(one)
    run_step(s, 50, contents)
    s.add(two)
    (chunk,) = [c for c in s.schedule(50) if c.sequence is two]
    assert (chunk.start, chunk.count) == (16, 1)
    assert two.blocks[:4] == one.blocks[:4]
    s.commit(chunk)
    s.remove(one)
    s.remove(two)
    assert s.pages.held == 0
    assert s.pages.cached == 4

"""`bench throughput`: the whole engine, token ids in and out, greedy, no prefix reuse; in one process or on Ray."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, cast

from rich.console import Console
from rich.table import Table

from cluster.config import ServeConfig
from cluster.control.orders import LocalOrders
from cluster.plan import ServePlan, make_plan
from experts.epoch.membership import HERE, EpochRecord, Membership
from experts.worker.deadlines import DEADLINES
from router_svc.api.engines import EventStream
from router_svc.link.client import LinkEngines
from router_svc.request import EngineRequest, Event, FailedEvent
from router_svc.sampling import Sampling
from router_svc.worker import AttentionWorker


@dataclass(frozen=True, slots=True)
class Case:
    """B sequences of P prompt tokens, G new tokens each."""

    batch: int
    prompt: int
    gen: int


class Runner(Protocol):
    """Runs one batch: (seconds to the batch's first tokens, seconds in all)."""

    def __call__(self, prompts: list[list[int]], gen: int) -> tuple[float, float]: ...


def run(folder: Path, config: ServeConfig, batches: list[int], prompt: int, gen: int, reps: int, as_json: bool) -> None:
    """Measure each batch size `reps` times and print the best: a line of JSON each, or a table."""
    longest = prompt + gen
    config = replace(
        config, max_num_seqs=max(batches), max_model_len=longest, grpc_port=0, http_port=0, max_queue_len=max(batches)
    )
    plan = make_plan(folder, config, check_ports=False, check_text=False)
    blocks = max(batches) * -(-longest // plan.engine.block_size)
    engine = replace(plan.engine, enable_prefix_caching=False, kv_blocks=max(plan.engine.kv_blocks, blocks))
    rows = []
    with _runner(replace(plan, engine=engine)) as runner:
        for batch in batches:
            row = _measure(runner, plan, Case(batch, prompt, gen), reps)
            rows.append(row)
            if as_json:
                print(json.dumps(row), flush=True)
    if not as_json:
        _show(rows)


def prompts_of(case: Case, vocabulary: int) -> list[list[int]]:
    """Random ids, the same for the same case."""
    rng = random.Random(f"{case.batch}/{case.prompt}")
    return [[rng.randrange(10, vocabulary) for _ in range(case.prompt)] for _ in range(case.batch)]


def _measure(runner: Runner, plan: ServePlan, case: Case, reps: int) -> dict[str, object]:
    prefill = decode = 0.0
    for _ in range(reps):
        first, total = runner(prompts_of(case, plan.spec.vocab_size), case.gen)
        prefill = max(prefill, case.batch * case.prompt / first)
        decode = max(decode, case.batch * (case.gen - 1) / (total - first))
    config = plan.config
    return {
        "engine": "tokenyard",
        "attention_workers": config.attention_workers,
        "expert_workers": 0 if config.colocate else config.experts,
        "batch": case.batch,
        "prompt": case.prompt,
        "gen": case.gen,
        "prefill_tok_s": round(prefill, 1),
        "decode_tok_s": round(decode, 1),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "quantization": "none",
    }


@contextmanager
def _runner(plan: ServePlan) -> Iterator[Runner]:
    if not plan.config.one_process:
        with _ray_runner(plan) as runner:
            yield runner
        return
    events: SimpleQueue[Event] = SimpleQueue()

    def deliver(found: list[Event]) -> None:
        for event in found:
            events.put(event)

    rank = one_rank(plan, deliver)

    def one(prompts: list[list[int]], gen: int) -> tuple[float, float]:
        start = time.perf_counter()
        for i, ids in enumerate(prompts):
            rank.post(EngineRequest(f"b{i}", tuple(ids), _greedy(gen)))
        first, waiting, left = 0.0, {f"b{i}" for i in range(len(prompts))}, len(prompts)
        while left:
            event = events.get()
            if isinstance(event, FailedEvent):
                raise RuntimeError(event.message)
            if event.request_id in waiting:
                waiting.remove(event.request_id)
                if not waiting:
                    first = time.perf_counter() - start
            left -= event.finish_reason is not None
        return first, time.perf_counter() - start

    try:
        yield one
    finally:
        rank.end()


def one_rank(plan: ServePlan, deliver: Callable[[list[Event]], None]) -> AttentionWorker:
    """The one rank of a plan, loaded and running steps, without a server around it."""
    orders = LocalOrders(plan, deliver)
    order = orders.of(plan.seats[0], "", plan.placement, orders.policy)
    rank = cast(AttentionWorker, asyncio.run(order.load(lambda done, total: None)))
    record = EpochRecord(Membership(1, plan.seats), HERE, 0, DEADLINES.group)
    rank.join(record, rank.bell.ring, rank.leave)  # its requests fail when its steps end, which ends the benchmark
    return rank


@contextmanager
def _ray_runner(plan: ServePlan) -> Iterator[Runner]:
    """The ranks on Ray, without a front door: requests go over links from here, as an ingress sends them."""
    from cluster.control.orders import Orders
    from cluster.serve.launch import RayCluster  # Ray loads only where it is used
    from cluster.serve.loading import LoadingView
    from experts.worker.remote import wait

    with RayCluster(Orders(plan)) as cluster, asyncio.Runner() as loop:
        with LoadingView(plan.seats) as view:
            cluster.start_ranks(view)
        secret, addresses = wait(cluster.supervisor.links())
        links = LinkEngines(secret)
        loop.run(links.connect(addresses))
        yield lambda prompts, gen: loop.run(_over_links(links, prompts, gen))


async def _over_links(links: LinkEngines, prompts: list[list[int]], gen: int) -> tuple[float, float]:
    start = time.perf_counter()

    async def first_token(stream: EventStream) -> float:
        await stream.next()
        first = time.perf_counter() - start
        while await stream.next() is not None:
            continue
        return first

    streams = [links.submit(EngineRequest(f"b{i}", tuple(ids), _greedy(gen))) for i, ids in enumerate(prompts)]
    firsts = await asyncio.gather(*map(first_token, streams))
    return max(firsts), time.perf_counter() - start


def _greedy(gen: int) -> Sampling:
    return Sampling(max_tokens=gen, seed=0, temperature=0.0, ignore_eos=True)


def _show(rows: list[dict[str, object]]) -> None:
    table = Table()
    names = ("batch", "prompt", "gen", "prefill_tok_s", "decode_tok_s", "dtype")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    Console().print(table)

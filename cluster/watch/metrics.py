"""The ranks' part of /metrics: one page for the whole cluster, in Prometheus text, bounded in labels."""

from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cluster.watch.status import BalancerView, RankView, StatusBook
from experts.placement import Placement
from router_svc.api.metrics import metrics_page, process_metrics

# (name, help, how to read it from an engine's stats)
_ENGINE_GAUGES = (
    ("num_requests_running", "Sequences that run.", lambda e: e.running),
    ("num_requests_waiting", "Sequences that wait.", lambda e: e.waiting),
    (
        "kv_cache_usage_perc",
        "Share of KV blocks held by requests, 0 to 1.",
        lambda e: e.kv_blocks_held / max(e.kv_blocks, 1),
    ),
)
_ENGINE_COUNTERS = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda e: e.prefix_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda e: e.prefix_hits),
    ("num_preemptions", "Sequences preempted to be computed again.", lambda e: e.preemptions),
    ("engine_steps", "Steps.", lambda e: e.steps),
)
_EXCHANGE_COUNTERS = (
    ("dispatch_seconds", "Spent sending tokens to experts.", lambda x: x.dispatch_seconds),
    ("combine_seconds", "Spent bringing experts' sums back.", lambda x: x.combine_seconds),
    ("exchange_collectives", "Collectives inside MoE layers.", lambda x: x.collectives),
    ("exchange_layers", "MoE layers exchanged.", lambda x: x.layers),
    ("exchange_sent_bytes", "Sent to other ranks.", lambda x: x.bytes_sent),
)


def merge_pages(pages: Sequence[str]) -> str:
    """Pages of several ingresses as one: samples of the same name and labels are added up."""
    merged: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            totals = {(s.name, tuple(sorted(s.labels.items()))): s for s in known.samples}
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = totals.get(key)
                totals[key] = sample if before is None else before._replace(value=before.value + sample.value)
            known.samples = list(totals.values())
    registry = CollectorRegistry()
    registry.register(_Families(list(merged.values())))
    return generate_latest(registry).decode()


def rank_metrics(
    views: Sequence[RankView], book: StatusBook, placement: Placement, balancer: BalancerView | None = None
) -> str:
    """Prometheus text of all ranks, of where experts are, and of the balancer."""
    book.look(views)
    return metrics_page([_Page(views, book), _BalancerPage(placement, balancer or BalancerView())], book.model)


def process_page(own: str, views: Sequence[RankView], model: str) -> str:
    """Prometheus text of this process, named `own`, and of the memory of the ranks' processes."""
    return metrics_page([process_metrics(own), _RankMemory(views)], model)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class _Page(Collector):
    def __init__(self, views: Sequence[RankView], book: StatusBook) -> None:
        self._views, self._book = views, book

    def collect(self) -> Iterator[Metric]:
        engines = [(str(v.member.rank), v.engine) for v in self._views if v.engine is not None]
        exchanges = [(str(v.member.rank), v.exchange) for v in self._views]
        for name, text, read in _ENGINE_GAUGES:
            gauge = GaugeMetricFamily(f"tokenyard_{name}", text, labels=["rank"])
            for rank, stats in engines:
                gauge.add_metric([rank], read(stats))
            yield gauge
        for table, sources in ((_ENGINE_COUNTERS, engines), (_EXCHANGE_COUNTERS, exchanges)):
            for name, text, read in table:
                counter = CounterMetricFamily(f"tokenyard_{name}", text, labels=["rank"])
                for rank, source in sources:
                    counter.add_metric([rank], read(source))
                yield counter
        tokens = CounterMetricFamily("tokenyard_expert_rank_tokens", "Routed tokens computed.", labels=["rank"])
        for view in self._views:
            if view.loads is not None:
                tokens.add_metric([str(view.member.rank)], float(view.loads.sum()))
        yield tokens
        last, _ = self._book.balancedness
        yield GaugeMetricFamily("tokenyard_eplb_balancedness", "Mean rank load over the busiest rank's.", value=last)


class _RankMemory(Collector):
    """Under the name that Prometheus has for any process's; a rank that is dead or silent has no sample."""

    def __init__(self, views: Sequence[RankView]) -> None:
        self._views = views

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory size in bytes.", labels=["process"]
        )
        for view in self._views:
            if view.memory_bytes:
                memory.add_metric([f"rank {view.member.rank}"], float(view.memory_bytes))
        yield memory


class _BalancerPage(Collector):
    def __init__(self, placement: Placement, balancer: BalancerView) -> None:
        self._placement, self._balancer = placement, balancer

    def collect(self) -> Iterator[Metric]:
        view = self._balancer
        for name, text, value in (
            ("eplb_plans", "Plans made by the balancer.", view.plans),
            ("rebalances", "Rebalances that moved experts.", view.rebalances),
            ("experts_moved", "Experts fetched by ranks.", view.experts_moved),
            ("rebalance_seconds", "Spent moving experts.", view.seconds),
        ):
            yield CounterMetricFamily(f"tokenyard_{name}", text, value=float(value))
        yield GaugeMetricFamily(
            "tokenyard_eplb_stuck", "1 while balancing does not go on as it should.", value=float(view.state == "stuck")
        )
        yield GaugeMetricFamily("tokenyard_placement_version", "In use.", value=float(self._placement.version))
        replicas = GaugeMetricFamily(
            "tokenyard_expert_replicas", "Experts of all layers, by how many copies they have.", labels=["copies"]
        )
        counts = np.bincount(np.minimum(self._placement.replicas().ravel(), 4), minlength=5)
        for copies, label in ((1, "1"), (2, "2"), (3, "3"), (4, "4+")):
            replicas.add_metric([label], float(counts[copies]))
        yield replicas

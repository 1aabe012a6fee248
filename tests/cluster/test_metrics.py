"""The one page: ingresses are added up, ranks have a label."""

from prometheus_client.parser import text_string_to_metric_families

from cluster.watch.metrics import merge_pages, process_page
from cluster.watch.status import RankView
from experts.epoch.membership import Member
from router_svc.api.calls import Chunk
from router_svc.api.metrics import IngressMetrics


def page(prompt: int, tokens: int, process: str) -> str:
    metrics = IngressMetrics("demo")
    watch = metrics.request(prompt)
    for index in range(tokens):
        watch.chunk(Chunk(0, index, "x", (1,), finish_reason="stop" if index == tokens - 1 else None))
    watch.end()
    return metrics.page(process)


def test_pages_of_ingresses_are_added_up() -> None:
    merged = merge_pages([page(5, 3, "http"), page(7, 4, "grpc 1")])
    found = {s.name: s.value for f in text_string_to_metric_families(merged) for s in f.samples if "le" not in s.labels}
    assert found["tokenyard_prompt_tokens_total"] == 12
    assert found["tokenyard_generation_tokens_total"] == 7
    assert found["tokenyard_time_to_first_token_seconds_count"] == 2
    assert found["tokenyard_inter_token_latency_seconds_count"] == 5
    assert found["tokenyard_request_success_total"] == 2
    assert merge_pages([merged]) == merged


def test_processes_keep_their_own_samples_on_one_page() -> None:
    ranks = [
        RankView(Member(rank, "both"), "ready", None, None, memory_bytes=memory) for rank, memory in enumerate((7, 0))
    ]
    merged = merge_pages([page(5, 3, "http"), page(7, 4, "grpc 1"), process_page("supervisor", ranks, "demo")])
    (memory,) = (f for f in text_string_to_metric_families(merged) if f.name == "process_resident_memory_bytes")
    found = {s.labels["process"]: s.value for s in memory.samples}
    assert found.keys() == {"http", "grpc 1", "supervisor", "rank 0"}
    assert found["rank 0"] == 7
    starts = [f for f in text_string_to_metric_families(merged) if f.name == "process_start_time_seconds"]
    assert len({s.value for s in starts[0].samples}) == 1, "samples of one process were added up"
    assert {s.labels["model_name"] for f in text_string_to_metric_families(merged) for s in f.samples} == {"demo"}

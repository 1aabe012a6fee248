"""The one page: ingresses are added up, ranks are told apart."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import merge_pages
from router_svc.api.calls import Chunk
from router_svc.api.metrics import IngressMetrics


def page(prompt: int, tokens: int) -> str:
    metrics = IngressMetrics()
    watch = metrics.request(prompt)
    for index in range(tokens):
        watch.chunk(Chunk(0, index, "x", (1,), finish_reason="stop" if index == tokens - 1 else None))
    watch.end()
    return generate_latest(metrics.registry).decode()


def test_pages_of_ingresses_are_added_up() -> None:
    merged = merge_pages([page(5, 3), page(7, 4)])
    found = {s.name: s.value for f in text_string_to_metric_families(merged) for s in f.samples if "le" not in s.labels}
    assert found["tokenyard_prompt_tokens_total"] == 12
    assert found["tokenyard_generation_tokens_total"] == 7
    assert found["tokenyard_time_to_first_token_seconds_count"] == 2
    assert found["tokenyard_inter_token_latency_seconds_count"] == 5
    assert found["tokenyard_request_success_total"] == 2
    assert merge_pages([merged]) == merged

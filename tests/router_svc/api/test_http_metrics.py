"""/metrics of a server in one process: what is there, whose it is, and that refused calls leave no trace."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.http_calls import opened, post, send
from tests.server import RunningServer, one_process


@pytest.fixture(scope="module")
def own() -> Iterator[RunningServer]:
    """A server that nobody else calls."""
    with one_process(max_num_seqs=1, max_queue_len=1) as running:
        yield running


def samples(server: RunningServer) -> list[Sample]:
    page = send(server, "GET", "/metrics")[1]
    families = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families)), "a family stands twice"
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def counted(server: RunningServer, *names: str) -> list[float]:
    return [sum(s.value for s in samples(server) if s.name == f"tokenyard_{name}") for name in names]


def test_names_and_labels(own: RunningServer) -> None:
    post(own, "/v1/completions", {"prompt": "a", "max_tokens": 2})
    found = samples(own)
    for name, labels in (
        ("time_to_first_token_seconds_count", {}), ("e2e_request_latency_seconds_count", {}), ("prompt_tokens_total", {}),
        ("generation_tokens_total", {}), ("request_success_total", {"finished_reason": "length"}),
        ("num_requests_running", {"rank": "0"}), ("kv_cache_usage_perc", {"rank": "0"}),
        ("expert_rank_tokens_total", {"rank": "0"}), ("eplb_balancedness", {}), ("dispatch_seconds_total", {"rank": "0"}),
    ):  # fmt: skip
        assert [s for s in found if (s.name, s.labels) == (f"tokenyard_{name}", labels | {"model_name": "demo"})], name
    assert all(s.labels.get("model_name") == "demo" for s in found)


def test_the_process_stands_once_under_prometheus_own_names(own: RunningServer) -> None:
    values = {s.name: s.value for s in samples(own) if s.labels.get("process") == "server"}
    assert values["process_resident_memory_bytes"] > 50 << 20
    assert values["process_cpu_seconds_total"] > 0
    assert values["process_open_fds"] > 3
    assert {"process_virtual_memory_bytes", "process_start_time_seconds", "process_max_fds"} <= values.keys()


def test_refused_calls_are_counted_nowhere(own: RunningServer) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count")
    running = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True, "request_id": "same"}
    with opened(own, "/v1/completions", running) as first:
        first.readline()
        before = counted(own, names[0], names[2])
        twin = {"prompt": "w " * 80, "max_tokens": 1, "request_id": "same"}
        assert post(own, "/v1/completions", twin)[0] == 400
        with opened(own, "/tokenize", {"prompt": "x"}):
            assert post(own, "/v1/completions", {"prompt": "", "max_tokens": 1})[0] == 400
        assert counted(own, names[0], names[2]) == before
    own.quiet()
    prompt, given, whole = counted(own, *names)
    assert post(own, "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "n": 2})[0] == 200
    assert counted(own, *names) == [prompt + 3, given + 8, whole + 1]

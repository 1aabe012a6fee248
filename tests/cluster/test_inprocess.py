"""One process: a part that ends though it never should shows in status, health and events."""

import json
import re
import urllib.error
import urllib.request

import pytest

from cluster.cli.dump import dump
from cluster.cli.status import status as show_status
from cluster.cli.top import top as show_top
from router_svc.client import CallError, Client
from router_svc.client.requests import Retries
from tests.server import RunningServer, one_process


def health(server: RunningServer) -> tuple[int, str | None]:
    """(status, Retry-After) of /health where it is not 200."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.url}/health", timeout=30)
    return caught.value.code, caught.value.headers["retry-after"]


def test_a_step_thread_that_exits_fails_requests_and_degrades(monkeypatch: pytest.MonkeyPatch) -> None:
    with one_process() as server, Client(server.target, retries=Retries(attempts=1)) as client:
        stream = client.generate_stream([5, 6, 7], max_tokens=900, temperature=0.0, ignore_eos=True)
        next(stream)

        def exits(*arguments: object) -> None:
            raise SystemExit(4)

        monkeypatch.setattr(server.engine, "_count", exits)
        with pytest.raises(CallError, match="step-loop ended with SystemExit: 4") as caught:
            list(stream)
        assert caught.value.code == "UNAVAILABLE"
        status = client.status(events=True)
        assert status["state"] == "degraded"
        assert "step-loop" in status["reason"]
        assert [event["kind"] for event in status["events"]][-1] == "degraded"
        assert "tokenyard serve" in status["reason"], "what to do"
        assert status["requests"] == {"running": 0, "waiting": 0}
        with pytest.raises(CallError, match="the server is degraded") as refused:
            client.generate([5], max_tokens=2)
        assert refused.value.retry_after is None, "this does not pass by itself"
        assert health(server) == (503, None)
        server.server.engines.detach("stopping", "")
        assert health(server) == (503, "5")
        with pytest.raises(CallError, match="the server is stopping") as refused:
            client.generate([5], max_tokens=2)
        assert refused.value.retry_after == 5.0


def test_the_first_screen_answers_an_operators_first_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with one_process() as server, Client(server.target) as client:
        fresh = client.status(events=True)
        assert [event["kind"] for event in fresh["events"]] == [
            "starting",
            "loaded",
            "epoch",
            "balancing",
            "door",
            "door",
        ]
        assert re.search(r"\(both, pid \d+\): \d+\.\d MB in \d+\.\d s", fresh["events"][1]["text"])
        assert fresh["events"][4]["text"] == f"gRPC listens on {server.target}"
        assert fresh["workers"][0]["memory_bytes"] > 50 << 20
        assert (fresh["tokens_per_second"], fresh["time_to_first_token"], fresh["kv_cache_usage"]) == (0, 0, 0)
        stream = client.generate_stream([5, 6, 7], max_tokens=900, temperature=0.0, ignore_eos=True)
        for _ in range(40):
            next(stream)
        busy = client.status()
        stream.close()
        assert busy["tokens_per_second"] > 0
        assert busy["time_to_first_token"] > 0
        assert busy["kv_cache_usage"] > 0
        show_status(server.target)
        screen = capsys.readouterr().out
        assert re.search(r"[\d.]+ tokens/s, first token after [\d.]+ s, KV cache \d+ % in use", screen)
        assert re.search(r"rank 0 both ready pid \d+ on 127.0.0.1, [\d,]+ MB", screen)
        show_top(server.target, count=1)
        screen = capsys.readouterr().out
        assert re.search(r"[\d.]+ tokens/s  first token after [\d.]+ s  KV cache \d+ % in use", screen)
        assert " MB" in screen


def test_dump_shows_the_step_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with one_process() as server, Client(server.target) as client:
        assert len(client.generate([5, 6], max_tokens=3, ignore_eos=True)) == 1
        (found,) = client.dump()
        assert found.moment is not None
        assert found.moment.step >= 2
        assert found.moment.peers == ()
        loop = next(thread.frames for thread in found.threads if thread.name == "step-loop")
        assert any("router_svc/engine/step_loop.py" in frame for frame in loop)
        assert any(task.startswith("HTTP server: cluster/serve/http_server.py:") for task in found.tasks)
        dump(server.target, as_json=False)
        assert "thread step-loop\n    " in capsys.readouterr().out
        dump(server.target, as_json=True)
        (one,) = json.loads(capsys.readouterr().out)["processes"]
        assert {"name", "pid", "trouble", "moment", "threads", "tasks"} == set(one)

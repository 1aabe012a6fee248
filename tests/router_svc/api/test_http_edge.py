"""Around the HTTP app: slashes, wrong methods, web pages of other origins, request ids, and when the model came."""

import time
from collections.abc import Iterator

import pytest

from cluster.config import ServeConfig
from experts.errors import UserError
from tests.http_calls import post, send
from tests.server import RunningServer, one_process

PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def open_server() -> Iterator[RunningServer]:
    with one_process(allowed_origins=f"{PAGE}, http://localhost:3000") as running:
        yield running


def test_paths_with_a_slash_at_their_end(server: RunningServer) -> None:
    for path in ("/health/", "/v1/models/", "/v1/models/demo/", "/v1/models//"):
        status, found, _ = send(server, "GET", path)
        assert (status, found) == send(server, "GET", path.rstrip("/"))[:2]
        assert status == 200
    assert post(server, "/v1/completions/", {"prompt": "a", "max_tokens": 1})[1]["object"] == "text_completion"
    assert post(server, "/tokenize/", {"prompt": "a"})[1]["count"] > 0
    status, found, _ = send(server, "GET", "/v1/nothing/")
    assert status == 404
    assert "/v1/nothing" in found["error"]["message"]
    assert send(server, "GET", "/")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("PUT", "/v1/chat/completions/", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/tokenize", "POST"),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(
    server: RunningServer, method: str, path: str, allowed: str
) -> None:
    status, found, headers = send(server, method, path)
    assert (status, headers["allow"]) == (405, allowed)
    assert f"found {method}, expected {allowed.replace(', ', ' or ')}" in found["error"]["message"]


def test_the_model_and_answers_say_since_when(server: RunningServer) -> None:
    listed = send(server, "GET", "/v1/models")[1]["data"][0]["created"]
    assert time.time() - 3600 < listed <= time.time()
    assert send(server, "GET", "/v1/models/demo")[1]["created"] == listed
    before = int(time.time())
    answered = post(server, "/v1/completions", {"prompt": "a", "max_tokens": 1})[1]["created"]
    assert before <= answered <= time.time()


def test_every_answer_has_a_request_id(server: RunningServer) -> None:
    assert send(server, "GET", "/health", **{"x-request-id": "abc"})[2].get_all("x-request-id") == ["abc"]
    ids = {send(server, "GET", path)[2]["x-request-id"] for path in ("/health", "/nothing")}
    assert len(ids) == 2
    raw = b'{"prompt": "a", "max_tokens": 2, "stream": true}'
    assert (
        send(server, "POST", "/v1/completions", raw, **{"x-request-id": "of-a-stream"})[2]["x-request-id"]
        == "of-a-stream"
    )


def test_without_origins_no_page_may_call(server: RunningServer) -> None:
    headers = send(server, "GET", "/v1/models", origin=PAGE)[2]
    assert "access-control-allow-origin" not in headers


def test_pages_of_allowed_origins_may_call(open_server: RunningServer) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    status, _, headers = send(open_server, "OPTIONS", "/v1/chat/completions", origin=PAGE, **asks)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in headers["access-control-allow-methods"]
    assert "authorization" in headers["access-control-allow-headers"]
    for path in ("/v1/models", "/v1/models/other", "/nothing"):  # errors too, or the page could not read them
        headers = send(open_server, "GET", path, origin="http://localhost:3000")[2]
        assert headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "x-request-id" in headers["access-control-expose-headers"]


def test_pages_of_other_origins_may_not(open_server: RunningServer) -> None:
    other = "https://evil.example.org"
    assert "access-control-allow-origin" not in send(open_server, "GET", "/v1/models", origin=other)[2]
    asks = {"access-control-request-method": "POST"}
    status, _, headers = send(open_server, "OPTIONS", "/v1/models", origin=other, **asks)
    assert status == 400
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("text", ["*", "https://a.example", "HTTP://LOCALHOST:3000,https://[::1]:8443"])
def test_lists_of_origins(text: str) -> None:
    config = ServeConfig(allowed_origins=text)
    config.check()
    assert ",".join(config.origins) == text.lower()


@pytest.mark.parametrize(
    "text",
    ["a.example", "https://a.example/", "https://a.example/path", "*,https://a", ",", "https://a:x", "https://u@a"],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--allowed-origins: found"):
        ServeConfig(allowed_origins=text).check()

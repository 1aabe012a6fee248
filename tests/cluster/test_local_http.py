"""Calls to our own server go there, whatever proxies the environment names."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster.serve import local_http
from experts.address import Listen


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with local_http.call(local_http.url(Listen("0.0.0.0", server.server_port), "/health"), 30) as answer:
            assert answer.status == 200
        thread.join()


def test_addresses_to_call() -> None:
    assert local_http.url(Listen("::1", 80), "/x") == "http://[::1]:80/x"
    assert local_http.url(Listen("::", 80), "/x") == "http://[::1]:80/x"
    assert local_http.url(Listen("example", 80), "/") == "http://example:80/"

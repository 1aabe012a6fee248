"""HttpDoor: HTTP on Ray Serve. Serve is one per Ray: on a Ray that others use too, it may be there before us."""

import time
from collections.abc import Callable
from typing import Any

from ray import serve

from cluster.serve import local_http
from cluster.serve.http_server import KEEP_ALIVE
from experts import ray_private
from experts.address import Listen
from experts.errors import UserError
from router_svc.ingress.ingress import IngressOrder, SupervisorVerbs
from router_svc.ingress.serve_app import HttpReplica

_PROXY = 300.0  # s for Serve's proxy to be there on a busy machine
_FIRST_ANSWER = 150.0  # s for /health from the application's start on


class HttpDoor:
    """One application, at `/`."""

    def __init__(self, name: str, listen: Listen) -> None:
        """listen: one address, and a port that is not 0."""
        self._name, self._listen = name, listen
        self._started = False  # whether Serve is ours
        self._running = False  # whether there may be an application of ours

    def start_serve(self) -> None:
        """Start Serve, or use the one that is there. Raises UserError when that one listens elsewhere."""
        place = ray_private.serve_http_place()
        if place is not None:
            if place != (self._listen.host, self._listen.port):
                raise UserError(
                    f"{self._listen.port} on {self._listen.host}",
                    f"{place[1]} on {place[0]}, where this Ray's Serve listens",
                    "--http-port",
                )
            return
        self._started = True
        with ray_private.patient_serve(_PROXY):
            serve.start(
                http_options={
                    "host": self._listen.host,
                    "port": self._listen.port,
                    "location": "HeadOnly",
                    "keep_alive_timeout_s": KEEP_ALIVE,
                },
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )

    def run(self, order: IngressOrder, supervisor: SupervisorVerbs) -> None:
        """Start the application; it answers soon."""
        deployment: Any = HttpReplica
        self._running = True
        with ray_private.patient_serve(_PROXY):
            serve.run(deployment.bind(order, supervisor), name=self._name, route_prefix="/")

    def await_answer(self, go_on: Callable[[], None]) -> None:
        """Until /health is 200; the first call makes the replica connect. Raises TimeoutError."""
        url = local_http.url(self._listen, "/health")
        until = time.monotonic() + _FIRST_ANSWER
        while True:
            go_on()
            try:
                with local_http.call(url, 30) as answer:
                    if answer.status == 200:
                        return
            except OSError as error:
                if time.monotonic() > until:
                    raise TimeoutError(f"{url}: {error}") from None
            time.sleep(0.05)

    def stop(self, wait: bool) -> None:
        """End what is ours. wait: until it is gone, on a Ray that lives on."""
        if self._started and wait:
            serve.shutdown()
        elif self._running:
            serve.delete(self._name, _blocking=wait)
        self._started = self._running = False

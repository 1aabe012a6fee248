"""What an ingress measures of its requests, under vLLM's names with the prefix tokenyard_."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from router_svc.api.calls import Chunk

disable_created_metrics()  # times of creation can't be added up over ingresses

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class IngressMetrics:
    """Counters and histograms of one ingress process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"tokenyard_{name}", text, buckets=_SECONDS, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tokenyard_{name}", text, labels, registry=self.registry)

        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.between = histogram("inter_token_latency_seconds", "Between two tokens of a choice.")
        self.whole = histogram("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self.prompt = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generated = counter("generation_tokens", "Tokens given to clients.")
        self.success = counter("request_success", "Choices that ended well.", "finished_reason")

    def request(self, prompt_tokens: int) -> "RequestWatch":
        """Start measuring an admitted request."""
        self.prompt.inc(prompt_tokens)
        return RequestWatch(self)


class RequestWatch:
    """The measuring of one request."""

    def __init__(self, metrics: IngressMetrics) -> None:
        self._metrics = metrics
        self._start = time.monotonic()
        self._last: dict[int, float] = {}

    def chunk(self, chunk: Chunk) -> None:
        """A chunk is on its way out."""
        now = time.monotonic()
        if chunk.token_ids:
            before = self._last.get(chunk.choice)
            if before is not None:
                self._metrics.between.observe(now - before)
            elif not self._last:
                self._metrics.first_token.observe(now - self._start)
            self._last[chunk.choice] = now
            self._metrics.generated.inc(len(chunk.token_ids))
        if chunk.finish_reason:
            self._metrics.success.labels(chunk.finish_reason).inc()

    def end(self) -> None:
        """The request is over, one way or another."""
        self._metrics.whole.observe(time.monotonic() - self._start)

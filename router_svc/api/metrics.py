"""What an ingress measures of its requests, under vLLM's names with the prefix tokenyard_, and of its process."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from router_svc.api.calls import Chunk

disable_created_metrics()  # times of creation can't be added up over ingresses

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Labelled(Collector):
    """The metrics of other collectors, each sample with more labels."""

    def __init__(self, inner: Iterable[Collector], **labels: str) -> None:
        self._inner, self._labels = tuple(inner), labels

    def collect(self) -> Iterator[Metric]:
        for collector in self._inner:
            for metric in collector.collect():
                copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
                copy.samples = [s._replace(labels={**self._labels, **s.labels}) for s in metric.samples]
                yield copy


def metrics_page(collectors: Iterable[Collector], model: str) -> str:
    """Prometheus text of the collectors' metrics, each sample with the served model's name."""
    whole = CollectorRegistry()
    whole.register(Labelled(collectors, model_name=model))
    return generate_latest(whole).decode()


def process_metrics(name: str) -> Collector:
    """Memory, CPU time and open files of this process under Prometheus's own names, with its name as a label."""
    return Labelled([ProcessCollector(registry=None)], process=name)


class IngressMetrics:
    """Counters and histograms of one ingress process. model: the served name, a label of every sample."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"tokenyard_{name}", text, buckets=_SECONDS, registry=self._registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tokenyard_{name}", text, labels, registry=self._registry)

        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.between = histogram("inter_token_latency_seconds", "Between two tokens of a choice.")
        self.whole = histogram("e2e_request_latency_seconds", "From an admitted request's arrival to its end.")
        self.prompt = counter("prompt_tokens", "Prompt tokens of admitted requests, counted with the first answer.")
        self.generated = counter("generation_tokens", "Tokens given to clients.")
        self.success = counter("request_success", "Choices that ended well.", "finished_reason")

    def request(self, prompt_tokens: int) -> "RequestWatch":
        """Start measuring a request, which may still be refused."""
        return RequestWatch(self, prompt_tokens)

    def page(self, process: str) -> str:
        """Prometheus text. process: this process's name on the cluster's page, where it stands once."""
        return metrics_page([self._registry, process_metrics(process)], self._model)


class RequestWatch:
    """The measuring of one request. Nothing is counted of one that is refused, or that ends before its first answer."""

    def __init__(self, metrics: IngressMetrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._start = time.monotonic()
        self._admitted = False
        self._last: dict[int, float] = {}

    def chunk(self, chunk: Chunk) -> None:
        """A chunk is on its way out."""
        now = time.monotonic()
        if not self._admitted:
            self._admitted = True
            self._metrics.prompt.inc(self._prompt_tokens)
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
        if self._admitted:
            self._metrics.whole.observe(time.monotonic() - self._start)

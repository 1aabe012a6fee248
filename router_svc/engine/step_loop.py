"""Engine: the step loop of an attention rank. Knows no Ray, no text and no client; messages in, events out.

Nothing of a step is visible before it ended: cancellations, deadlines and holds wait for the next one.
"""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.errors import RankLost
from experts.exchange.base import Exchange
from experts.exchange.doorbell import Moment
from experts.layers import ExpertLayers
from experts.worker.pause import Pause
from router_svc.engine.builder import build_batch
from router_svc.engine.config import EngineConfig
from router_svc.engine.intake import Intake
from router_svc.engine.kv_pages import KVPages
from router_svc.engine.output import StepOutput
from router_svc.engine.prefix import PrefixChain
from router_svc.engine.recent import Rates, Recent
from router_svc.engine.scheduler import Scheduler
from router_svc.engine.sequence import ScheduledChunk, Sequence
from router_svc.models.batch import KVCache
from router_svc.models.decoder import CausalModel
from router_svc.request import Cancel, Code, EngineRequest, Event, Hold, Message

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineStats:
    """A snapshot. Blocks of block_size tokens; tokens since the start; seconds spent per phase of the steps; recent: of
    the last seconds."""

    running: int = 0
    waiting: int = 0
    kv_blocks: int = 0
    kv_blocks_held: int = 0
    kv_blocks_cached: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    schedule_seconds: float = 0.0
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    recent: Rates = Rates()


class Engine:
    """One attention rank's engine; see the module. `post`, `fail`, `stop` and `stats` are for any thread."""

    def __init__(
        self,
        model: CausalModel,
        layers: ExpertLayers,
        exchange: Exchange,
        config: EngineConfig,
        cache: KVCache,
        deliver: Callable[[list[Event]], None],
        pause: Pause | None = None,
    ) -> None:
        """pause: where it waits once its epoch broke, with all its sequences; None: nothing follows
        deliver: takes a step's events, from the step thread (or a failing one), and never blocks
        """
        self._model, self._layers, self._exchange = model, layers, exchange
        self._control, self._config, self._cache = exchange.control, config, cache
        self._deliver, self._pause = deliver, pause
        self._intake = Intake(config.max_queue_len)
        self._pages = KVPages(config.kv_blocks)
        self._scheduler = Scheduler(config, self._pages)
        self._sequences: dict[str, list[Sequence]] = {}
        self._arrivals = itertools.count()
        self._next: Moment = (exchange.epoch, 0)
        self.lost = ""  # why the loop ended, empty when it was asked to
        self._stopping = False
        self._busy = False  # the last step ran tokens somewhere, so all ranks open the next one without a bell
        self._idle = False
        self._stats = EngineStats(kv_blocks=config.kv_blocks)
        self._recent = Recent()

    def post(self, message: Message) -> None:
        """Hand over a message; a request that can't be taken gets its FailedEvent at once."""
        refusal = self._intake.put(message)
        if refusal is not None:
            self._deliver([refusal])
            return
        if self._idle:  # read after the put; the loop looks the other way round
            self._control.ring(self._next)

    def fail(self, reason: str) -> None:
        """End everything with UNAVAILABLE and `reason`, now and from now on."""
        self._deliver(self._intake.close(reason, Code.UNAVAILABLE))

    def stop(self) -> None:
        """Ask the whole group to end its loops after the next step."""
        self._stopping = True
        self._control.ring(self._next)

    def nudge(self) -> None:
        """Have the group run a step although nobody has tokens: a new placement comes into use by it."""
        self._control.ring(self._next)

    def stats(self) -> EngineStats:
        """What the last finished step left; of an engine that takes nothing any more, nothing runs."""
        if self._intake.closed is None:
            return replace(self._stats, recent=self._recent.rates(time.monotonic()))
        return replace(self._stats, running=0, waiting=0, kv_blocks_held=0)

    def run(self) -> None:
        """The step thread's body: ends after a stop (then everything failed), or when the exchange broke and nothing
        follows. A step that broke is scheduled again in the next epoch: before it draws, a step has changed nothing but
        which blocks its sequences hold and the order of the queue, and scheduling again leads to the same.

        Then `lost` says why, and the side that knows the cause calls `fail` with it.
        """
        stop = False
        while not stop:
            self._sleep()
            try:
                stop = self._step()
            except RankLost as lost:
                self._exchange.close()
                if self._pause is None or not self._pause.hold(lost, self._meanwhile):
                    self.lost = str(lost)
                    return
                self._next, self._busy = (self._exchange.epoch, 0), True  # all come to the first step by themselves
            except Exception as error:  # a bug or a device failure: clients must not hang on it
                log.exception("step %s failed", self._next)
                reason = f"a step failed: {type(error).__name__}: {error}"
                if self._exchange.lockstep:
                    self._exchange.close()
                    self.lost = reason
                    return
                self._drop_everything(reason)
        self.fail("the server is shutting down")

    def _meanwhile(self) -> None:
        """Between two epochs: requests are taken, cancelled and expire as ever; only tokens wait."""
        now = time.monotonic()
        output = StepOutput(self._intake, self._config.max_model_len)
        self._take_messages(now, output)
        self._expire(now, output)
        if output.events:
            self._deliver(output.events)

    def _step(self) -> bool:
        """One step; whether it was the last. What it gives its clients reaches them though the step breaks: a request that
        was refused, or whose time was over, is known no more when the header fails."""
        now = time.monotonic()
        output = StepOutput(self._intake, self._config.max_model_len)
        try:
            self._take_messages(now, output)
            self._expire(now, output)
            header = self._open()
            chunks = self._schedule(header)
            logits = self._forward(chunks, header)
            with self._layers.crew.part("sampling", 0 if logits is None else logits.numel()):
                self._finish(output.draw(chunks, logits, self._scheduler))
        finally:
            if output.events:
                self._deliver(output.events)
        self._count(output, chunks)
        return header.stop

    def _open(self) -> StepHeader:
        decode, prefill = self._scheduler.wish()
        header = self._exchange.open_step(StepWish(decode=decode, prefill=prefill, stop=self._stopping))
        self._next, self._busy = (header.epoch, header.step + 1), header.busy
        return header

    def _schedule(self, header: StepHeader) -> list[ScheduledChunk]:
        started = time.perf_counter()
        chunks = self._scheduler.schedule(header.prefill[self._exchange.member])
        now = time.monotonic()
        for chunk in chunks:
            if chunk.sequence.started is None:
                chunk.sequence.started = now
                if chunk.sequence.choice == 0:
                    self._intake.started(chunk.sequence.request)
        self._stats.schedule_seconds += time.perf_counter() - started
        return chunks

    def _forward(self, chunks: list[ScheduledChunk], header: StepHeader) -> torch.Tensor | None:
        """Logits of the chunks' wanted rows, None without chunks; takes part in the group's layers either way."""
        started = time.perf_counter()
        logits = None
        self._cache.clear(self._pages.newly_taken())
        if chunks:
            batch = build_batch(chunks, self._config.block_size, self._model.device)
            with self._layers.crew.part("attention", self._model.largest_product(batch)):
                logits = self._model.forward(batch, self._cache, self._layers)
        elif header.busy:
            self._layers.run_empty()
        if header.busy:
            self._layers.end_step(header)
        self._stats.forward_seconds += time.perf_counter() - started
        return logits

    def _take_messages(self, now: float, output: StepOutput) -> None:
        for message in self._intake.take():
            match message:
                case EngineRequest():
                    self._accept(message, now, output)
                case Cancel(request_id=request_id, choice=choice):
                    self._cancel(request_id, choice)
                case Hold(request_id=request_id, held=held):
                    for sequence in self._sequences.get(request_id, ()):
                        sequence.held = held

    def _accept(self, request: EngineRequest, now: float, output: StepOutput) -> None:
        needed = self._scheduler.blocks_for(len(request.prompt_ids) + request.sampling.max_tokens)
        if self._scheduler.blocks_for(len(request.prompt_ids) + 1) > self._pages.total or needed > self._pages.total:
            self._intake.started(request)
            room = self._pages.total * self._config.block_size
            output.fail(
                request,
                Code.INVALID_ARGUMENT,
                f"prompt and max_tokens of {len(request.prompt_ids)} + {request.sampling.max_tokens} tokens, "
                f"the KV cache holds {room}",
            )
            return
        arrival = next(self._arrivals)
        siblings: list[Sequence] = []
        for choice in range(request.n):
            siblings.append(
                Sequence(
                    request=request,
                    choice=choice,
                    order=(request.priority, arrival, choice),
                    arrived=now,
                    tokens=list(request.prompt_ids),
                    chain=PrefixChain(self._config.block_size),
                    leader=siblings[0] if siblings and self._config.enable_prefix_caching else None,
                    deadline=None if request.deadline is None else now + request.deadline,
                )
            )
            self._scheduler.add(siblings[-1])
        self._sequences[request.request_id] = siblings

    def _cancel(self, request_id: str, choice: int | None) -> None:
        sequences = self._sequences.get(request_id, [])
        self._finish([s for s in sequences if choice is None or s.choice == choice])

    def _expire(self, now: float, output: StepOutput) -> None:
        late = [s[0].request for s in self._sequences.values() if s[0].deadline is not None and now >= s[0].deadline]
        for request in late:
            output.fail(request, Code.DEADLINE_EXCEEDED, f"the request's time of {request.deadline:g} s is over")
            self._finish(list(self._sequences[request.request_id]))

    def _finish(self, ended: list[Sequence]) -> None:
        """Free what ended, and forget requests all of whose choices ended."""
        for sequence in ended:
            self._scheduler.remove(sequence)
            request_id = sequence.request.request_id
            if sequence.started is None and sequence.choice == 0:
                self._intake.started(sequence.request)
            siblings = self._sequences[request_id]
            siblings.remove(sequence)
            if not siblings:
                del self._sequences[request_id]
                self._intake.forget(sequence.request)

    def _drop_everything(self, reason: str) -> None:
        failures = self._intake.end_all(Code.INTERNAL, reason)
        for siblings in list(self._sequences.values()):
            for sequence in list(siblings):
                self._scheduler.remove(sequence)
        self._sequences.clear()
        self._deliver(failures)

    def _sleep(self) -> None:
        """Return when the next step is to run: at once after a busy step, else when any rank rang for it.

        Order matters against `post`: idle is set first, then looked whether a message came meanwhile.
        """
        if self._busy:
            return
        self._idle = True
        if self._stopping or self._intake or any(self._scheduler.wish()):
            self._control.ring(self._next)
        while not self._control.wait_for(self._next, self._patience()):
            self._control.ring(self._next)  # the deadline of a held request passed: the step expires it
        self._idle = False

    def _patience(self) -> float | None:
        deadlines = [s[0].deadline for s in self._sequences.values() if s[0].deadline is not None]
        return max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None

    def _count(self, output: StepOutput, chunks: list[ScheduledChunk]) -> None:
        old, scheduler = self._stats, self._scheduler
        if output.generated_tokens:
            self._recent.add(time.monotonic(), output.generated_tokens, output.first_waits)
        self._stats = EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks=self._pages.total,
            kv_blocks_held=self._pages.held,
            kv_blocks_cached=self._pages.cached,
            prefix_queries=scheduler.counters.prefix_queries,
            prefix_hits=scheduler.counters.prefix_hits,
            prompt_tokens=old.prompt_tokens + output.prompt_tokens,
            generated_tokens=old.generated_tokens + output.generated_tokens,
            preemptions=scheduler.counters.preemptions,
            steps=old.steps + 1,
            schedule_seconds=old.schedule_seconds,
            forward_seconds=old.forward_seconds,
            sample_seconds=old.sample_seconds + output.seconds,
        )

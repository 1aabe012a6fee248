"""StepOutput: what a step gives its clients, gathered while it ends and delivered in one call."""

import time

import torch

from router_svc.engine.builder import logit_places
from router_svc.engine.intake import Intake
from router_svc.engine.sampler import NONE_LEFT, Draw, Drawn, sample, token_logprob
from router_svc.engine.scheduler import Scheduler
from router_svc.engine.sequence import ScheduledChunk, Sequence
from router_svc.request import Code, EngineRequest, Event, FailedEvent, Timings, TokenEvent


class StepOutput:
    """One step's events and counts. Used by the step thread alone."""

    def __init__(self, intake: Intake, max_model_len: int) -> None:
        self._intake = intake
        self._longest = max_model_len
        self.events: list[Event] = []
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_waits: list[float] = []  # s, of requests whose first token this step drew
        self.seconds = 0.0

    def fail(self, request: EngineRequest, code: Code, message: str) -> None:
        """End a request with an error, unless something else ended it before."""
        if self._intake.forget(request):
            self.events.append(FailedEvent(request.request_id, request.attempt, code, message))

    def draw(self, chunks: list[ScheduledChunk], logits: torch.Tensor | None, scheduler: Scheduler) -> list[Sequence]:
        """Commit the chunks, draw a token for each that samples, and return the sequences that ended."""
        if logits is None:
            return []
        started = time.perf_counter()
        rows: list[int] = []
        drawing: list[Sequence] = []
        row = 0
        for chunk in chunks:
            places = logit_places(chunk)
            if len(places) > 1 or chunk.sequence.request.sampling.prompt_logprobs is not None:
                self._score_prompt(chunk, logits[row : row + len(places)])
            row += len(places)
            if not chunk.sequence.generated:
                self.prompt_tokens += chunk.count
            scheduler.commit(chunk)
            if chunk.samples:
                rows.append(row - 1)
                drawing.append(chunk.sequence)
        draws = [Draw(s.request.sampling, s.choice, s.generated, s.tokens, s.prompt_len) for s in drawing]
        wanted = logits if len(rows) == len(logits) else logits[rows]
        drawn = sample(wanted, draws) if draws else []
        now = time.monotonic()
        ended = [s for s, d in zip(drawing, drawn, strict=True) if self._take(s, d, now)]
        self.seconds = time.perf_counter() - started
        return ended

    def _take(self, sequence: Sequence, drawn: Drawn, now: float) -> bool:
        """Append a drawn token and tell; whether the sequence ended with it."""
        request = sequence.request
        if not self._intake.lives(request):
            return True
        if drawn.token == NONE_LEFT:
            self.fail(
                request, Code.INVALID_ARGUMENT, f"the sampling parameters forbid every token at {sequence.generated}"
            )
            return True
        if drawn.token < 0:
            sequence.spoiled = True
            self.fail(request, Code.INTERNAL, "the model gave no finite logits")
            return True
        index = sequence.generated
        sequence.tokens.append(drawn.token)
        if sequence.first_token is None:
            sequence.first_token = now
            if sequence.choice == 0:
                self.first_waits.append(now - sequence.arrived)
        self.generated_tokens += 1
        reason = self._finish_reason(sequence, drawn.token)
        self.events.append(
            TokenEvent(
                request_id=request.request_id,
                attempt=request.attempt,
                choice=sequence.choice,
                index=index,
                token_ids=(drawn.token,),
                logprobs=(drawn.logprob,) if drawn.logprob is not None else (),
                prompt_logprobs=tuple(sequence.prompt_logprobs) if index == 0 else (),
                finish_reason=reason,
                completion_tokens=sequence.generated,
                cached_tokens=sequence.cached_tokens,
                timings=_timings(sequence, now),
            )
        )
        return reason is not None

    def _finish_reason(self, sequence: Sequence, token: int) -> str | None:
        sampling = sequence.request.sampling
        if token in sampling.end_ids:
            return "stop"
        if sequence.generated >= sampling.max_tokens or len(sequence.tokens) >= self._longest:
            return "length"
        return None

    def _score_prompt(self, chunk: ScheduledChunk, logits: torch.Tensor) -> None:
        """Record the prompt's own log-probabilities: row p tells of token p + 1."""
        sequence = chunk.sequence
        count = sequence.request.sampling.prompt_logprobs
        if count is None or sequence.generated:
            return
        if chunk.start == 0:
            sequence.prompt_logprobs = [None]
        for place, row in enumerate(logits.log_softmax(-1), start=chunk.start + 1):
            if place < sequence.prompt_len:
                sequence.prompt_logprobs.append(token_logprob(row, sequence.tokens[place], count))


def _timings(sequence: Sequence, now: float) -> Timings:
    started = sequence.started if sequence.started is not None else now
    first = sequence.first_token if sequence.first_token is not None else now
    return Timings(started - sequence.arrived, first - sequence.arrived, now - sequence.arrived)

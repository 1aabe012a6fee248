"""Which tokens run in a step: decodes always, prompt chunks within the grant. Plain functions of state; no torch, no clock.

Continuous batching with chunked prefill. All blocks of what a sequence knows are taken when it is admitted;
a decode that finds no block preempts from the end of the order, and what was preempted is computed again later.
"""

from bisect import insort
from dataclasses import dataclass

from router_svc.engine.config import EngineConfig
from router_svc.engine.kv_pages import KVPages
from router_svc.engine.sequence import ScheduledChunk, Sequence


@dataclass(slots=True)
class SchedulerCounters:
    """Running totals."""

    preemptions: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens reused


class Scheduler:
    """Owns the sequences of one engine and their blocks. Single-threaded: the step thread's."""

    def __init__(self, config: EngineConfig, pages: KVPages) -> None:
        self.config = config
        self.pages = pages
        self.counters = SchedulerCounters()
        self.waiting: list[Sequence] = []  # by order
        self.running: list[Sequence] = []  # by order

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence that ended, failed or was cancelled, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def wish(self) -> tuple[int, int]:
        """(decode tokens, prompt tokens) that could run now; the second at most a step's budget."""
        decode = prefill = 0
        for sequence in self.running:
            if sequence.held:
                continue
            if sequence.decoding:
                decode += 1
            else:
                prefill += sequence.remaining
        room = self._room()
        budget = self.config.max_num_batched_tokens
        for sequence in self.waiting:
            if room <= 0 or prefill >= budget:
                break
            if self._may_start(sequence):
                room -= 1
                prefill += sequence.remaining
        return decode, min(prefill, budget)

    def schedule(self, granted: int) -> list[ScheduledChunk]:
        """The step's chunks: every decode that finds a block, and at most `granted` prompt tokens."""
        chunks = self._decodes()
        for sequence in self.running:
            if granted <= 0:
                break
            if not sequence.held and not sequence.decoding:
                count = min(sequence.remaining, granted)
                chunks.append(ScheduledChunk(sequence, sequence.computed, count))
                granted -= count
        while granted > 0 and self._room() > 0:
            admitted = self._admit()
            if admitted is None:
                break
            count = min(admitted.remaining, granted)
            chunks.append(ScheduledChunk(admitted, admitted.computed, count))
            granted -= count
        return chunks

    def commit(self, chunk: ScheduledChunk) -> None:
        """A step that ran the chunk has ended: its keys and values count, and full blocks may be reused."""
        sequence = chunk.sequence
        sequence.computed = chunk.start + chunk.count
        if not self.config.enable_prefix_caching:
            return
        full = sequence.computed // self.config.block_size
        if full > sequence.published:
            keys = sequence.chain.keys(sequence.tokens, full)
            for place in range(sequence.published, full):
                self.pages.publish(sequence.blocks[place], keys[place])
            sequence.published = full

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.config.block_size)

    def _decodes(self) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for sequence in list(self.running):
            if sequence.held or not sequence.decoding or sequence not in self.running:
                continue
            if self._grow(sequence):
                chunks.append(ScheduledChunk(sequence, sequence.computed, 1))
        return chunks  # none was preempted since: victims come from the end of the order, or are held

    def _grow(self, sequence: Sequence) -> bool:
        """Room for the next token, preempting the last in order if need be, perhaps the sequence itself."""
        while len(sequence.blocks) < self.blocks_for(len(sequence.tokens)):
            fresh = self.pages.take(1)
            if fresh is not None:
                sequence.blocks += fresh
                continue
            victim = max(self.running, key=lambda s: (s.held, s.order))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.counters.preemptions += 1
        self.running.remove(sequence)
        self._free(sequence)
        self.add(sequence)

    def _admit(self) -> Sequence | None:
        """Start the first of the order; none overtakes one that waits for blocks."""
        sequence = next((s for s in self.waiting if self._may_start(s)), None)
        if sequence is None:
            return None
        reused, needed = self._reusable_blocks(sequence), 0
        while True:
            needed = self.blocks_for(len(sequence.tokens)) - len(reused)
            if needed + self.pages.reusable(reused) <= self.pages.available:
                break
            idle = [s for s in self.running if s.held]
            if not idle:
                return None
            self._preempt(idle[-1])  # a slow reader's blocks hold nobody else back
        self.pages.share(reused)
        fresh = self.pages.take(needed)
        assert fresh is not None, f"{needed} blocks were available before sharing {len(reused)}"
        sequence.blocks = reused + fresh
        sequence.computed = sequence.published = 0
        if reused:
            sequence.computed = len(reused) * self.config.block_size
            sequence.published = len(reused)
        if not sequence.generated:
            sequence.cached_tokens = sequence.computed
            self.counters.prefix_queries += sequence.prompt_len
            self.counters.prefix_hits += sequence.computed
        sequence.leader = None
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        return sequence

    def _reusable_blocks(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its prefix; its last token is always computed, since its logits are wanted."""
        if not self.config.enable_prefix_caching or sequence.request.sampling.prompt_logprobs is not None:
            return []
        full = (len(sequence.tokens) - 1) // self.config.block_size
        return self.pages.match(sequence.chain.keys(sequence.tokens, full))

    def _room(self) -> int:
        """Sequences that may still join; held ones take no place."""
        return self.config.max_num_seqs - sum(not s.held for s in self.running)

    def _may_start(self, sequence: Sequence) -> bool:
        leader = sequence.leader
        waits = (
            leader is not None
            and leader.computed < leader.prompt_len
            and (leader in self.running or leader in self.waiting)
        )
        return not sequence.held and not waits

    def _free(self, sequence: Sequence) -> None:
        if sequence.spoiled:
            self.pages.forget(sequence.blocks)
        self.pages.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order

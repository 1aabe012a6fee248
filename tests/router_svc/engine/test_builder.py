"""From chunks to a ForwardBatch."""

from router_svc.engine.builder import build_batch
from router_svc.engine.prefix import PrefixChain
from router_svc.engine.sequence import ScheduledChunk, Sequence
from router_svc.request import EngineRequest
from tests.engines import sampling


def decoding(blocks: list[int], tokens: int) -> ScheduledChunk:
    request = EngineRequest(str(blocks), tuple(range(1, tokens + 1)), sampling(5))
    sequence = Sequence(request, 0, (0, 0, 0), 0.0, list(request.prompt_ids), PrefixChain(16), blocks=blocks)
    return ScheduledChunk(sequence, tokens - 1, 1)


def test_short_tables_are_padded_with_blocks_of_their_own() -> None:
    """Masks hide what padding brings, but 0 times another request's NaN is NaN."""
    batch = build_batch([decoding([5], 3), decoding([0, 2, 9], 40)], 16, "cpu")
    assert batch.block_tables.tolist() == [[5, 5, 5], [0, 2, 9]]
    assert batch.kv_slots.tolist() == [5 * 16 + 2, 9 * 16 + 39 % 16]
    assert batch.context_lens == (3, 40)

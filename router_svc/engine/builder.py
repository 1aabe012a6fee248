"""From a step's chunks to the tensors of a ForwardBatch."""

import numpy as np
import torch

from router_svc.engine.sequence import ScheduledChunk
from router_svc.models.batch import ForwardBatch


def build_batch(chunks: list[ScheduledChunk], block_size: int, device: str) -> ForwardBatch:
    """Rows in the order of `chunks`. Logits: each sampling chunk's last row, all rows where prompt logprobs are wanted."""
    total = sum(chunk.count for chunk in chunks)
    longest = max(len(chunk.sequence.blocks) for chunk in chunks)
    ids, positions = np.empty(total, np.int64), np.empty(total, np.int64)
    slots, tables = np.empty(total, np.int64), np.zeros((len(chunks), longest), np.int64)
    wanted: list[int] = []
    row = 0
    for b, chunk in enumerate(chunks):
        sequence, end = chunk.sequence, chunk.start + chunk.count
        tables[b] = sequence.blocks[0]  # the rest is hidden by masks, which do not stop a NaN: let it be its own
        tables[b, : len(sequence.blocks)] = sequence.blocks
        span = np.arange(chunk.start, end)
        ids[row : row + chunk.count] = sequence.tokens[chunk.start : end]
        positions[row : row + chunk.count] = span
        slots[row : row + chunk.count] = tables[b, span // block_size] * block_size + span % block_size
        wanted.extend(row + at for at in logit_places(chunk))
        row += chunk.count
    return ForwardBatch(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        kv_slots=torch.from_numpy(slots).to(device),
        query_lens=tuple(chunk.count for chunk in chunks),
        context_lens=tuple(chunk.start + chunk.count for chunk in chunks),
        block_tables=torch.from_numpy(tables).to(device),
        logit_rows=torch.tensor(wanted, dtype=torch.int64, device=device),
    )


def logit_places(chunk: ScheduledChunk) -> range:
    """Places inside the chunk whose logits are wanted."""
    sequence = chunk.sequence
    if sequence.request.sampling.prompt_logprobs is not None and not sequence.generated:
        return range(chunk.count)
    return range(chunk.count - 1, chunk.count) if chunk.samples else range(0)

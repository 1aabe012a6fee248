"""ForwardBatch: one step's tokens, as a model's forward takes them. Tensors only, no sequence, no request.

Shape letters: T tokens of the step, B sequences of the step, P the longest block table, V vocabulary.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Flat tokens of B sequences, one after the other; sequence b owns query_lens[b] consecutive rows.

    ids, positions: [T] int64 (position in its sequence, from 0)
    kv_slots: [T] int64, where each token's key and value go in the flat cache (block * block_size + offset)
    query_lens: per sequence, rows here
    context_lens: per sequence, tokens in the cache once these rows are written (>= query_lens)
    block_tables: [B, P] int64 block numbers, padded with the sequence's first
    logit_rows: [n] int64 rows whose logits are wanted
    """

    ids: torch.Tensor
    positions: torch.Tensor
    kv_slots: torch.Tensor
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    block_tables: torch.Tensor
    logit_rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """Paged keys and values of one attention rank: per model layer [blocks * block_size, KH, D]."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    block_size: int

    @classmethod
    def allocate(
        cls, layers: int, blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> "KVCache":
        """Empty cache of `blocks` blocks of `block_size` tokens in each of `layers` layers."""
        shape = (blocks * block_size, kv_heads, head_dim)
        keys = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers))
        values = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers))
        return cls(keys, values, block_size)

    def clear(self, blocks: list[int]) -> None:
        """Zero some blocks. What masks hide is still multiplied, by 0: a NaN that someone left would spread."""
        if not blocks:
            return
        index = torch.tensor(blocks, device=self.keys[0].device)
        for side in (*self.keys, *self.values):
            side.view(-1, self.block_size * side[0].numel()).index_fill_(0, index, 0.0)

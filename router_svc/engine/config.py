"""Limits of one attention rank's engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All in tokens or sequences unless said otherwise.

    max_num_batched_tokens: of a whole step, over all attention ranks
    kv_blocks: blocks of block_size tokens
    max_queue_len: requests that may wait before new ones are refused
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue_len: int
    kv_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True

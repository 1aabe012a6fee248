"""Digest: a checksum over all tensors of an expert, by which copies are compared before anyone computes with them."""

import hashlib
from collections.abc import Iterable, Iterator

import torch

SLICE = 1 << 20  # bytes


def slices(tensor: torch.Tensor) -> Iterator[memoryview]:
    """A tensor's bytes in slices; one on a GPU is copied to the CPU a slice at a time. The tensor is contiguous."""
    flat = tensor.view(torch.uint8).reshape(-1)
    for start in range(0, flat.numel(), SLICE):
        yield memoryview(flat[start : start + SLICE].cpu().numpy().data)


class Digest:
    """Fed slice by slice, or with whole tensors."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def feed(self, data: memoryview) -> None:
        """Take in some bytes."""
        self._hash.update(data)

    def value(self) -> bytes:
        """[16] of everything so far."""
        return self._hash.digest()


def digest_of(parts: Iterable[torch.Tensor]) -> bytes:
    """[16] checksum over tensors, in order."""
    digest = Digest()
    for part in parts:
        for data in slices(part):
            digest.feed(data)
    return digest.value()

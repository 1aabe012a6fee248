"""Group: the live members of one epoch, ready for collectives. The interface; gloo and NCCL each have a file.

Knows no tokens. A group is built, used by one thread, and dropped; nothing repairs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

BUILD_DEADLINE = 10.0  # s, for all members of an epoch to come together


class Pending(Protocol):
    """An operation under way."""

    def wait(self) -> bool: ...

    def missing(self) -> tuple[int, ...] | None:
        """Members that are not known to have done their part yet; None: that can't be seen. Any thread."""


class Group(ABC):
    """index: this member's number in the group
    size: how many there are

    Tensors live on `device`.

    Operations raise RuntimeError (torch's own) when a member is gone, the timeout passed, or the group was closed.
    """

    index: int
    size: int
    device: torch.device
    kept: object = None  # what a backend may ask as long as it lives, but does not keep alive itself

    @abstractmethod
    def all_gather(self, out: torch.Tensor, mine: torch.Tensor) -> Pending:
        """out: [size * n]
        mine: [n] of the same dtype; every member brings n elements
        """

    @abstractmethod
    def all_to_all(
        self, out: torch.Tensor, mine: torch.Tensor, out_splits: Sequence[int], splits: Sequence[int]
    ) -> Pending:
        """Send the next splits[j] elements of `mine` to member j; out_splits[i] come from member i; none to itself."""

    @abstractmethod
    def close(self) -> None:
        """Drop connections at once: operations pending here and on peers fail. Any thread, any number of times."""

    def culprit(self, error: Exception) -> int | None:
        """The member that an error's text names, if it names one."""
        return None

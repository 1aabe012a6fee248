"""What every domain of the demo model's data hands out, and the rule that keeps test items out of training.

Knows no tokens and no chat format.
"""

import zlib
from dataclasses import dataclass

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Task:
    """A question with the steps that lead to its answer; asked in chat form, with the steps shown or not."""

    domain: str
    kind: str
    question: str
    steps: str
    answer: str


def is_held_out(key: str) -> bool:
    """True for one key in HELD_OUT_ONE_IN, by a hash that is the same on every machine and in every run."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0

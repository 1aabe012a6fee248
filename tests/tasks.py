"""Questions to the small model, by kind: each kind heats other experts."""

import random
from collections.abc import Callable

TASKS: dict[str, Callable[[random.Random], str]] = {
    "add": lambda r: f"{r.randrange(100, 999)}+{r.randrange(100, 999)}=?",
    "reverse": lambda r: "reverse: " + "".join(r.choice("abcdefghij") for _ in range(9)),
}

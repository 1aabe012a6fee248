"""What runs in a policy's process: loads the class, then answers one question after the other until the pipe ends.

The policy's own prints go where its errors go, to a pipe of which only the last line is ever shown.
"""

import contextlib
import fcntl
import importlib
import os
import select
import signal
import sys
import traceback
from typing import Any, BinaryIO

from cluster.balance.foreign.wire import LENGTH_BYTES, pack, placement_message, read_situation, unpack
from cluster.balance.policies.base import Policy
from experts.placement import Placement


def main(life: int, questions: int, answers: int) -> None:
    """Serve until `questions` ends. life: a pipe that nobody writes to; our parent's death closes it."""
    end_with_parent(life)
    asked, answered = os.fdopen(questions, "rb"), os.fdopen(answers, "wb")
    _tell(answered, {"ready": True})
    policy: Policy | None = None
    while (message := _next(asked)) is not None:
        try:
            if "load" in message:
                policy, answer = _load(message["load"])
            else:
                assert policy is not None, "a policy is loaded before it is asked"
                answer = _plan(policy, message)
        except BaseException as error:  # a policy may raise anything, SystemExit too
            answer = {"error": f"raised {type(error).__name__}: {error}{_place(error)}"}
        _tell(answered, answer)


def end_with_parent(life: int) -> None:
    """Have the kernel kill this process and those it forks when the other end of `life` closes: it does so even while
    the policy never returns to Python."""
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())  # our process group, which begins with us
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(life, 0)
    if poller.poll(0):  # closed before the signal was ordered
        os._exit(1)


def _load(source: str) -> tuple[Policy | None, dict[str, Any]]:
    module, _, attribute = source.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        return None, {"error": f"({error})", "expected": "an importable module:Class"}
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        return None, {
            "error": "is not a policy", "expected": "a subclass of cluster.balance.policies.base.Policy",
        }  # fmt: skip
    policy = kind()
    facts = {"name": policy.name or source, "split": policy.split, "clairvoyant": bool(policy.clairvoyant)}
    return policy, {name: fact if isinstance(fact, bool) else str(fact) for name, fact in facts.items()}


def _plan(policy: Policy, message: dict[str, Any]) -> dict[str, Any]:
    placement = policy.plan(read_situation(message))
    if not isinstance(placement, Placement):
        return {"error": f"returned {type(placement).__name__}", "expected": "a Placement"}
    return {"placement": placement_message(placement)}


def _place(error: BaseException) -> str:
    """Where in the policy's own files it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


def _next(asked: BinaryIO) -> dict[str, Any] | None:
    head = asked.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    return unpack(asked.read(int.from_bytes(head, "little")))


def _tell(answered: BinaryIO, message: dict[str, Any]) -> None:
    with contextlib.suppress(Exception):  # a policy may have closed it
        sys.stdout.flush()
    answered.write(pack(message))
    answered.flush()

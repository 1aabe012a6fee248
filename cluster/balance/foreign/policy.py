"""ForeignPolicy: a policy `module:Class` from outside, asked in a process of its own.

A process that hangs, ends or answers nonsense is killed and started again when it is asked next, after a pause that
doubles with every failure.
"""

import threading
import time
from collections.abc import Callable

from cluster.balance.foreign.process import Gone, PolicyProcess, clean
from cluster.balance.foreign.wire import Nonsense, read_placement, situation_message
from cluster.balance.policies.base import Policy, PolicyFailed, Situation
from experts.errors import UserError
from experts.placement import Placement

SECONDS = 30.0  # that a policy may take to load, and to plan
_PAUSE, _LONGEST_PAUSE = 1.0, 64.0  # s before a process is started again
_NAME = 100  # characters of a name that are shown


class ForeignPolicy(Policy):
    """Blocks while it is asked; from one thread at a time (others wait). `close` is for any thread."""

    def __init__(
        self, source: str, folder: str, seconds: float = SECONDS, where: str = "--policy",
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """source: module:Class
        folder: the user's, where its module may lie
        seconds: for each answer

        Raises UserError.
        """
        self.name, self._source, self._folder, self._seconds, self._now = source, source, folder, seconds, now
        self._lock = threading.Lock()
        self._process: PolicyProcess | None = None
        self._closed = False
        self._failures, self._again, self._last = 0, 0.0, ""
        try:
            facts = self._started()
        except PolicyFailed as failed:
            raise UserError(failed.found, failed.expected, where) from None
        self.name = clean(facts.get("name") or source, _NAME)
        self.split = clean(facts.get("split"), _NAME)
        self.clairvoyant = facts.get("clairvoyant") is True
        if self.split not in ("exact", "even"):
            self.close()
            raise UserError(f"policy {self.name!r} with split {self.split!r}", "exact or even", where)

    def plan(self, situation: Situation) -> Placement:
        """The placement that the policy wants. Raises PolicyFailed."""
        message = {"plan": True} | situation_message(situation)
        most = 2 * situation.current.slot_expert.nbytes + (1 << 16)
        with self._lock:
            if self._process is None:
                if self._closed or self._now() < self._again:
                    raise PolicyFailed(f"policy {self.name!r} {self._last or 'was closed'}", "a placement", "plan")
                self._started()
            answer = self._ask(message, "a placement", most)
            self._failures = 0
            try:
                return read_placement(answer.get("placement"), f"policy {self.name!r}")
            except Nonsense as error:
                raise self._failed(f"answered with {error}") from None
            except UserError as error:
                raise PolicyFailed(error.found, error.expected, error.where) from None

    def close(self) -> None:
        """Not asked any more: its process ends, also one that is being asked."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _started(self) -> dict[str, object]:
        """What the class says of itself, in a new process. Raises PolicyFailed."""
        try:
            self._process = PolicyProcess(self._folder)
        except Gone as gone:
            raise self._failed(str(gone)) from None
        try:
            return self._ask({"load": self._source}, "a class without arguments")
        except PolicyFailed:
            self._drop()
            raise

    def _ask(self, message: dict[str, object], wanted: str, most: int = 1 << 16) -> dict[str, object]:
        """An answer that is not an error; wanted: what it should have been. Raises PolicyFailed."""
        assert self._process is not None, "a process is started before it is asked"
        try:
            answer = self._process.call(message, self._seconds, most)
        except Gone as gone:
            raise self._failed(str(gone)) from None
        if "error" in answer:
            expected = clean(answer.get("expected") or wanted)
            raise PolicyFailed(f"policy {self.name!r} {clean(answer['error'])}", expected, "plan")
        return answer

    def _failed(self, what: str) -> PolicyFailed:
        """Kill the process, and say when another may be started."""
        self._drop()
        self._last = what
        self._again = self._now() + min(_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        return PolicyFailed(f"policy {self.name!r} {what}", "a placement", "plan")

    def _drop(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

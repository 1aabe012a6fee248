"""How long processes wait for each other, all in one place, so that who waits for whom stays in proportion. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds.

    lease: without the supervisor's sign of life, after which a rank ends
    renew: between two signs of life
    hangs: without an answer, after which a rank that serves counts as hung
    verdict: for a rank of a broken group to answer, before it counts as hung
    culprit: that a broken group waits for news of a death, to name it
    named: that an engine whose group broke waits for the supervisor to say who died
    group: of every collective
    build: for all members of a next epoch to come together
    connect, connect_each: of it, to connect once all are there: one that dies then must not hold the others for long
    enter: for all of them to begin a step of it
    suspend: for a rank whose epoch broke to come out of its step
    switch: for all ranks to end a step under a placement that all offered
    answer: for an event loop to answer where others don't wait for it: status, metrics, dumps
    relay: for a process that asks others for theirs
    needed: for an answer without which nothing goes on
    """

    lease: float = 60.0
    renew: float = 15.0
    hangs: float = 30.0
    verdict: float = 10.0
    culprit: float = 0.5
    named: float = 15.0
    group: float = 30.0
    build: float = 15.0
    connect: float = 2.0
    connect_each: float = 0.1
    enter: float = 10.0
    suspend: float = 15.0
    switch: float = 10.0
    answer: float = 2.0
    relay: float = 6.0
    needed: float = 60.0

    def __post_init__(self) -> None:
        assert 2 * self.renew <= self.lease, "one sign of life may be lost"
        assert self.renew + self.hangs < self.lease, "a rank that hangs is noticed before its lease ends"
        assert self.culprit + self.verdict < self.named, "an engine waits until the supervisor knows who died"
        assert self.build < self.hangs, "a rank that builds a group does not count as hung"
        assert 2 * self.answer < self.relay, "who asks others hears of those that did not answer"

    def connecting(self, members: int) -> float:
        """For so many members to connect, once all are there."""
        return min(self.connect + members * self.connect_each, self.build)


DEADLINES = Deadlines()

# Seconds for each verb of what is called through `remote`. None: its caller knows the end, or it has none.
_VERBS: dict[str, Mapping[str, float | None]] = {
    "WorkerHost": {
        "load": None,  # by the checkpoint's size; progress shows it
        "progress": DEADLINES.needed,
        "join": DEADLINES.needed,
        "prepare": DEADLINES.build,
        "drop_epoch": DEADLINES.build,
        "broken": None,  # until the epoch breaks
        "suspend": DEADLINES.suspend,
        "recover": DEADLINES.build,
        "epoch": DEADLINES.enter,
        "leave": DEADLINES.needed,
        "ended": None,  # the rank's life
        "keep": DEADLINES.hangs,
        "ring": DEADLINES.needed,
        "nudge": DEADLINES.needed,
        "stop": DEADLINES.needed,
        "meet": DEADLINES.needed,
        "stepped": None,  # until a step was counted
        "steps": DEADLINES.needed,
        "stage": None,  # by the bytes of the experts
        "offer": DEADLINES.switch,
        "drop_staged": DEADLINES.needed,
        "version": DEADLINES.switch,
        "report": DEADLINES.needed,
        "dump": DEADLINES.answer,
    },
    "SourceProcess": {"go": DEADLINES.needed, "left": DEADLINES.needed, "results": DEADLINES.needed},
    "Supervisor": {
        "start": None,  # loads all ranks
        "progress": DEADLINES.needed,
        "links": DEADLINES.needed,
        "watch": None,  # until something changes
        "status": DEADLINES.needed,
        "dump": DEADLINES.relay,
        "placement": DEADLINES.needed,
        "rebalance": None,  # by what moves
        "release": None,
        "admit": None,
        "counted": DEADLINES.needed,
        "source": DEADLINES.needed,
        "add_door": DEADLINES.needed,
        "note": DEADLINES.needed,
        "metrics": DEADLINES.needed,
        "stop": None,  # by the grace period and the recording
    },
    "Door": {
        "start": None,  # reads the tokenizer
        "metrics": DEADLINES.answer,
        "dump": DEADLINES.answer,
        "ended": None,  # the door's life
        "stop": DEADLINES.needed,
    },
}


def deadline(kind: type, verb: str) -> float | None:
    """Seconds that a call of `verb` may take, None = any. Raises KeyError for a verb that the table lacks."""
    for base in kind.__mro__:
        verbs = _VERBS.get(base.__name__, {})
        if verb in verbs:
            return verbs[verb]
    raise KeyError(f"{kind.__name__}.{verb} has no deadline")

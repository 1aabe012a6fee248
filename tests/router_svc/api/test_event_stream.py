"""EventStream: each choice ends once, by the engine or by its reader, and a late reader ends no other choice."""

from router_svc.api.engines import HOLD_ABOVE, EventStream
from router_svc.request import Cancel, EngineRequest, Hold, Message, TokenEvent
from router_svc.sampling import Sampling


def stream(n: int) -> tuple[EventStream, list[Message]]:
    """A stream of a request with n choices, and what it tells the engine."""
    told: list[Message] = []
    return EventStream(EngineRequest("r", (1,), Sampling(max_tokens=9, seed=0, n=n)), told.append), told


def token(choice: int, index: int, reason: str | None = None) -> TokenEvent:
    return TokenEvent("r", 0, choice, index, (7,), finish_reason=reason)


async def test_stopping_a_choice_that_has_ended_leaves_the_others() -> None:
    one, told = stream(2)
    for event in (token(0, 0), token(0, 1, "length"), token(1, 0)):
        one.feed(event)
    assert await one.next() is not None
    one.cancel(0)  # its stop string was found in a token before the last
    assert told == []
    one.feed(token(1, 1, "length"))
    rest = await one.next()
    assert rest is not None
    assert rest[-1].finish_reason == "length"
    assert one.over


async def test_choices_stop_one_by_one_and_the_last_ends_the_request() -> None:
    one, told = stream(3)
    one.cancel(1)
    one.cancel(1)
    one.feed(token(1, 0))
    one.feed(token(0, 0, "stop"))
    one.cancel(2)
    assert told == [Cancel("r", 1), Cancel("r")]
    events = await one.next()
    assert events is not None
    assert [event.choice for event in events] == [0]
    assert await one.next() is None


async def test_a_reader_behind_is_held_and_resumed_once() -> None:
    one, told = stream(1)
    for index in range(HOLD_ABOVE + 5):
        one.feed(token(0, index))
    assert told == [Hold("r", True)]
    read = 0
    while read < HOLD_ABOVE + 5:
        read += len(await one.next() or ())
    assert told == [Hold("r", True), Hold("r", False)]

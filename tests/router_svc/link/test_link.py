"""The link: what is packed comes back, bad frames end the connection, requests and events travel, ends are told."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.hello import Calling, call_stream
from router_svc.api.engines import StreamFailed
from router_svc.api.pick import Picker
from router_svc.link.client import LinkAddress, LinkEngines
from router_svc.link.codec import (
    BadFrame,
    frame,
    pack_event,
    pack_message,
    party,
    read_frame,
    unpack_event,
    unpack_message,
)
from router_svc.link.server import LinkServer
from router_svc.request import (
    Cancel,
    Claim,
    Code,
    EngineRequest,
    Event,
    FailedEvent,
    Hold,
    Message,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from router_svc.sampling import Sampling

_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_logprobs = st.builds(
    TokenLogprob, st.integers(0, 9), _floats, st.lists(st.tuples(st.integers(0, 9), _floats), max_size=2).map(tuple)
)
_samplings = st.builds(
    Sampling, max_tokens=st.integers(1, 99), seed=st.integers(-(2**63), 2**63 - 1), temperature=_floats, stop_token_ids=_ids,
    logit_bias=st.lists(st.tuples(st.integers(0, 9), _floats), max_size=2).map(tuple), logprobs=st.none() | st.integers(0, 5),
    n=st.integers(1, 4), stop=st.lists(st.text(), max_size=2).map(tuple), min_tokens=st.integers(0, 9),
    bad_word_ids=st.lists(_ids, max_size=2).map(tuple), skip_special_tokens=st.booleans(),
)  # fmt: skip
_messages = st.one_of(
    st.builds(
        EngineRequest,
        st.text(),
        _ids,
        _samplings,
        st.integers(-5, 5),
        st.none() | _floats,
        st.integers(0, 2**62),
        st.text(),
    ),
    st.builds(Claim, st.text(), st.integers(0, 2**62), st.text()),
    st.builds(Cancel, st.text(), st.none() | st.integers(0, 3)),
    st.builds(Hold, st.text(), st.booleans()),
)
_events = st.one_of(
    st.builds(FailedEvent, st.text(), st.integers(0, 3), st.sampled_from(Code), st.text(), st.none() | _floats),
    st.builds(
        TokenEvent, st.text(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99), _ids,
        st.lists(_logprobs, max_size=2).map(tuple), st.lists(st.none() | _logprobs, max_size=2).map(tuple),
        st.sampled_from([None, "stop", "length"]), st.integers(0, 9), st.integers(0, 9),
        st.builds(Timings, _floats, _floats, _floats),
    ),
)  # fmt: skip


async def through(value: Any) -> Any:
    reader = asyncio.StreamReader()
    reader.feed_data(frame(value))
    reader.feed_eof()
    return await read_frame(reader)


@given(message=_messages)
def test_messages_come_back(message: Message | Claim) -> None:
    assert unpack_message(asyncio.run(through(pack_message(message)))) == message


@given(event=_events)
def test_events_come_back(event: Event) -> None:
    assert unpack_event(asyncio.run(through(pack_event(event)))) == event


@given(value=st.recursive(st.none() | st.integers(0, 9) | st.text(max_size=3), lambda v: st.lists(v, max_size=4)))
def test_junk_is_refused(value: Any) -> None:
    for unpack in (unpack_message, unpack_event):
        with pytest.raises(BadFrame):
            unpack(value)


class Sink:
    """Stands where an engine's `post` is; keeps what comes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def wait(self, count: int) -> list[Message]:
        while len(self.messages) < count:
            await asyncio.sleep(0.005)
        return self.messages


async def test_requests_and_events_travel_and_lost_ranks_are_told() -> None:
    sink = Sink()
    server = LinkServer(sink.messages.append, "secret", 4)
    port = await server.start("127.0.0.1")
    engines = LinkEngines("secret")
    await engines.connect([LinkAddress(4, "127.0.0.1", port)])
    engines.show_state("ready", "")
    request = EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1))
    stream = engines.submit(request)
    assert await sink.wait(1) == [request]
    server.deliver([TokenEvent("r", 0, 0, 0, (7,)), TokenEvent("r", 0, 0, 5, (9,))])
    first = await stream.next()
    assert first is not None
    assert [event.token_ids for event in first] == [(7,)], "an index out of order is not taken"
    twin = engines.submit(replace(request, body="another"))
    with pytest.raises(StreamFailed, match="running with another body"):
        await twin.next()
    stream.cancel()
    assert (await sink.wait(2))[1] == Cancel("r", None)
    again = engines.submit(EngineRequest("s", (1,), Sampling(max_tokens=5, seed=1)))
    await sink.wait(3)
    for owner in list(server._owners.values()):
        owner.writer.close()
    with pytest.raises(StreamFailed, match="attention rank 4"):
        await again.next()
    assert engines.state()[0] == "degraded"


async def test_a_request_is_forgotten_when_its_last_choice_ends_however_that_comes() -> None:
    sink = Sink()
    server = LinkServer(sink.messages.append, "secret", 4)
    engines = LinkEngines("secret")
    await engines.connect([LinkAddress(4, "127.0.0.1", await server.start("127.0.0.1"))])
    request = EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1, n=3))
    stream = engines.submit(request)
    await sink.wait(1)
    server.deliver([TokenEvent("r", 0, 0, 0, (7,), finish_reason="length")])
    assert await stream.next() is not None
    stream.cancel(1)
    await sink.wait(2)
    server.deliver([TokenEvent("r", 0, 2, 0, (7,), finish_reason="length")])
    assert await stream.next() is not None
    assert stream.over
    assert server._owners == {}
    engines.submit(request)
    assert (await sink.wait(3))[2] == request


async def test_draining_does_not_resume_what_its_reader_holds() -> None:
    sink = Sink()
    server = LinkServer(sink.messages.append, "secret", 4)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1"))
    await call_stream(reader, writer, "secret", party())
    for name in ("slow", "quick"):
        writer.write(frame(pack_message(EngineRequest(name, (1,), Sampling(max_tokens=5, seed=1)))))
    await sink.wait(2)
    server.deliver([TokenEvent("slow", 0, 0, 0, tuple(range(1 << 20))) for _ in range(8)])  # more than is left unread
    assert await sink.wait(4)
    writer.write(frame(pack_message(Hold("slow", True))))
    await sink.wait(5)
    while len(sink.messages) < 6:
        await asyncio.wait_for(reader.read(1 << 20), 20)
    assert sink.messages[5:] == [Hold("quick", False)]
    writer.close()


async def test_a_wrong_secret_gets_nothing() -> None:
    sink = Sink()
    port = await LinkServer(sink.messages.append, "secret", 4).start("127.0.0.1")
    message = frame(pack_message(Cancel("x")))
    for said in (frame("secret"), frame(3), frame(["secret"]), Calling("secret", party()).message + bytes(32)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said + message)
        assert message not in await reader.read()
        writer.close()
    for secret, rank in (("wrong", 4), ("secret", 5)):
        engines = LinkEngines(secret)
        await engines.connect([LinkAddress(rank, "127.0.0.1", port)])
        stream = engines.submit(EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=0)))
        with pytest.raises(StreamFailed, match="no attention rank can serve"):
            await stream.next()
    assert sink.messages == []


async def test_an_ingress_starts_without_a_rank_that_is_gone() -> None:
    engines = LinkEngines("secret")
    await engines.connect([LinkAddress(4, "127.0.0.1", 1)])
    engines.show_state("degraded", "rank 4 (attention) died")
    stream = engines.submit(EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=0)))
    with pytest.raises(StreamFailed, match=r"rank 4 \(attention\) died"):
        await stream.next()


def test_picker_levels_work_and_keeps_prefixes_at_home() -> None:
    picker = Picker([0, 1])
    requests = [EngineRequest(str(i), (i,) * 70, Sampling(max_tokens=50, seed=0)) for i in range(6)]
    picked = [picker.pick(request) for request in requests]
    assert sorted(picked) == [0, 0, 0, 1, 1, 1]
    for rank, request in zip(picked, requests, strict=True):
        picker.done(rank, request)
    assert picker.pick(requests[3]) == picked[3]
    picker.drop(picked[3])
    assert picker.pick(requests[3]) != picked[3]


async def test_a_link_whose_reader_fails_fails_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    server = LinkServer(sink.messages.append, "secret", 4)
    engines = LinkEngines("secret")
    await engines.connect([LinkAddress(4, "127.0.0.1", await server.start("127.0.0.1"))])
    engines.show_state("ready", "")
    stream = engines.submit(EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1)))
    await sink.wait(1)

    def exits(value: Any) -> Event:
        raise SystemExit(3)

    monkeypatch.setattr("router_svc.link.client.unpack_event", exits)
    server.deliver([TokenEvent("r", 0, 0, 0, (7,))])
    with pytest.raises(StreamFailed, match=r"link to rank 4 ended with SystemExit: 3"):
        await stream.next()
    assert engines.state()[0] == "degraded"
    await sink.wait(2)
    assert sink.messages[1] == Cancel("r", None), "the rank's work ends with the connection"


async def test_a_hello_that_was_held_up_is_tried_again() -> None:
    """The rank loses patience with the first connection, as beside other work; the ingress comes again and is linked."""
    sink = Sink()
    port = await LinkServer(sink.messages.append, "secret", 4).start("127.0.0.1")
    calls = 0

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                to.write(data)

        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    front = await asyncio.start_server(between, "127.0.0.1", 0)
    engines = LinkEngines("secret")
    await engines.connect([LinkAddress(4, "127.0.0.1", front.sockets[0].getsockname()[1])])
    engines.show_state("ready", "")
    request = EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1))
    engines.submit(request)
    assert await sink.wait(1) == [request]
    assert calls == 2
    front.close()

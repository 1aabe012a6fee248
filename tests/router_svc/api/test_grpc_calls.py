"""The gRPC face: our client, a generic client over reflection, codes, request ids, cancellation, deadlines, health."""

import json
import urllib.error
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from router_svc.client import AsyncClient, CallError, Client
from router_svc.client.requests import Retries
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from tests.server import RunningServer


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Client:
    return Client(server.target, retries=Retries(attempts=1))


def test_generate_whole_and_streamed_alike(client: Client) -> None:
    fields = {"max_tokens": 30, "temperature": 0.8, "seed": 3}
    (whole,) = client.generate("Once upon a time", **fields)
    deltas = list(client.generate_stream("Once upon a time", **fields))
    assert "".join(d.text for d in deltas) == whole.text
    assert [t for d in deltas for t in d.token_ids] == list(whole.token_ids)
    assert [d.index for d in deltas] == list(range(len(deltas)))
    assert deltas[-1].usage == whole.usage
    assert deltas[-1].message.timings.total >= deltas[-1].message.timings.first_token > 0


def test_chat_with_reasoning(client: Client) -> None:
    (result,) = client.chat("/think What is 123 + 456?", temperature=0.0)
    assert result.content.strip() == "579"
    assert "write 9" in result.reasoning
    deltas = list(client.chat_stream("/think What is 123 + 456?", temperature=0.0))
    assert "".join(d.content for d in deltas) == result.content
    assert "".join(d.reasoning for d in deltas) == result.reasoning
    (short,) = client.chat("What is 1 + 2?", enable_thinking=False, temperature=0.0)
    assert short.reasoning == ""


def test_tokens_info_status_placement(client: Client) -> None:
    ids = client.tokenize("7 + 8 = ÿ")
    assert client.detokenize(ids) == "7 + 8 = ÿ"
    info = client.model_info()
    assert (info["architecture"], info["experts"], info["top_k"]) == ("hunyuan_v1_moe", 64, 8)
    status = client.status()
    assert (status["state"], status["epoch"], status["workers"][0]["role"]) == ("ready", 1, "both")
    placement = client.placement()
    assert len(placement.slot_expert) == placement.layers * placement.ranks * placement.slots_per_rank


async def test_async_client(server: RunningServer) -> None:
    async with AsyncClient(server.target) as client:
        (result,) = await client.generate([20, 30, 40], max_tokens=5, temperature=0.0, ignore_eos=True)
        streamed = [
            d async for d in client.generate_stream([20, 30, 40], max_tokens=5, temperature=0.0, ignore_eos=True)
        ]
        assert [t for d in streamed for t in d.token_ids] == list(result.token_ids)


def test_n_stop_and_logprobs(client: Client) -> None:
    results = client.generate("Once upon a time", max_tokens=20, temperature=1.0, seed=1, n=3, logprobs=2)
    assert len({r.text for r in results}) == 3
    assert len(results[0].message.logprobs) == results[0].usage["completion_tokens"]
    word = results[0].text.split()[1]
    (cut, *_) = client.generate("Once upon a time", max_tokens=20, temperature=1.0, seed=1, n=3, stop=[word])
    assert cut.finish_reason == "stop"
    assert word not in cut.text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 65}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [512]}, "stop_token_ids"),
        ({"timeout": -1.0}, "timeout"),
    ],
)
def test_wrong_fields_are_invalid_argument(client: Client, fields: dict[str, object], named: str) -> None:
    with pytest.raises(CallError) as caught:
        client.generate("a", **fields)  # type: ignore[arg-type]
    assert caught.value.code == "INVALID_ARGUMENT"
    assert named in caught.value.message


def test_wrong_input_is_named(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.InferenceStub(channel)
        for request, named in (
            (pb.GenerateRequest(), "input"),
            (pb.GenerateRequest(text=""), "prompt"),
            (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[-1])), "-1"),
            (pb.GenerateRequest(text="a", resume_from=3), "resume_from"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Generate(request)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert named in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="x")], chat_template_kwargs="[1]"))
        assert "chat_template_kwargs" in caught.value.details()


def test_one_process_has_nothing_to_balance(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            rpc.AdminStub(channel).Rebalance(pb.RebalanceRequest(dry_run=True))
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "rebalance: found one rank with experts" in caught.value.details()


def test_admin_names_that_are_not_built(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.AdminStub(channel)
        for call, request in (
            (stub.Drain, pb.DrainRequest()), (stub.Scale, pb.ScaleRequest()),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError) as caught:
                call(request)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert "not available" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.WatchStatus(pb.WatchStatusRequest()))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "WatchStatus" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_and_deadline_free_the_blocks(client: Client, server: RunningServer) -> None:
    stream = client.generate_stream("Once", max_tokens=1800, ignore_eos=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    server.quiet()
    with pytest.raises(CallError) as caught:
        client.generate("Once", max_tokens=1800, ignore_eos=True, timeout=0.1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    server.quiet()
    with grpc.insecure_channel(server.target) as channel:
        request = pb.GenerateRequest(text="Once", sampling=pb.Sampling(max_tokens=1800, ignore_eos=True))
        with pytest.raises(grpc.RpcError) as late:
            rpc.InferenceStub(channel).Generate(request, timeout=0.2)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.quiet()


def test_a_call_may_be_tried_again_under_its_id_right_after_its_cancel(server: RunningServer) -> None:
    request = pb.GenerateRequest(text="Once", request_id="same", sampling=pb.Sampling(max_tokens=900, ignore_eos=True))
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.InferenceStub(channel)
        for _ in range(20):
            call = stub.GenerateStream(request)
            assert next(call).index == 0
            call.cancel()
    server.quiet()


def test_the_same_call_under_a_running_id_takes_its_place_on_either_face(server: RunningServer, client: Client) -> None:
    fields = {"max_tokens": 300, "temperature": 0.0, "ignore_eos": True}
    with Client(server.target, retries=Retries(attempts=1)) as other:
        old = client.generate_stream("Once", request_id="again", **fields)
        next(old)
        with pytest.raises(CallError, match="running with another body") as refused:
            other.generate("Twice", request_id="again", **fields)
        assert refused.value.code == "INVALID_ARGUMENT"
        assert next(old), "the refused one changes nothing"
        again = other.generate_stream("Once", request_id="again", **fields)
        next(again)
        with pytest.raises(CallError, match="came again") as ended:
            list(old)
        assert ended.value.code == "ABORTED"
        body = {"prompt": "Once", "request_id": "again", **fields}
        request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            (choice,) = json.load(answer)["choices"]
        with pytest.raises(CallError, match="came again"):
            list(again)
        (whole,) = client.generate("Once", **fields)
        assert choice["text"] == whole.text
    server.quiet()


@pytest.mark.parametrize("bad", ["line\nbreak", "\x1b[2Jclear", "nul\x00", "\u202eright to left"])
def test_control_characters_in_a_request_id_are_refused(server: RunningServer, client: Client, bad: str) -> None:
    with pytest.raises(CallError, match=r"request_id: found '.*', expected printable characters") as caught:
        client.generate("Once", request_id=bad, max_tokens=2)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.message.isprintable()
    body = json.dumps({"prompt": "Once", "request_id": bad, "max_tokens": 2}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", body), timeout=60)
    error = json.load(refused.value)["error"]
    assert (refused.value.code, error["param"]) == (400, "request_id")
    assert error["message"].isprintable()


def test_slow_reader_holds_back_its_own_stream_only(client: Client, server: RunningServer) -> None:
    options = [("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        sampling = pb.Sampling(max_tokens=1900, ignore_eos=True, n=8, logprobs=20)
        slow = rpc.InferenceStub(channel).GenerateStream(pb.GenerateRequest(text="Once", sampling=sampling))
        next(slow)
        (result,) = client.generate("Once", max_tokens=50, ignore_eos=True)
        assert result.usage["completion_tokens"] == 50
        slow.cancel()
    server.quiet()


def test_health_and_reflection(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        for name in ("", "tokenyard.v1.Inference"):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"tokenyard.v1.Inference", "tokenyard.v1.Admin", "grpc.health.v1.Health"} <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("tokenyard.v1.Inference").FindMethodByName("Generate")
        request_class = message_factory.GetMessageClass(method.input_type)
        answer_class = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            "/tokenyard.v1.Inference/Generate", request_class.SerializeToString, answer_class.FromString
        )
        request = request_class(text="Once")
        request.sampling.max_tokens = 4
        request.sampling.ignore_eos = True
        assert len(call(request).choices[0].token_ids) == 4

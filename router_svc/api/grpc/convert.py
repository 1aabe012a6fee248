"""Between protobuf messages and the service's calls and chunks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic_core import from_json

from experts.dump import ProcessDump
from router_svc.api.calls import (
    ChatCall,
    ChatMessage,
    Chunk,
    GenerateCall,
    ModelInfo,
    NamedLogprob,
    invalid,
    template_options,
)
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.sampling import PARAMETERS

_FAR = 86400.0  # s; a client's deadline beyond is none


def generate_call(request: pb.GenerateRequest, remaining: float | None) -> GenerateCall:
    """remaining: seconds to the client's own deadline, None without one. Raises ApiError for fields that can't be."""
    _refuse_resume(request)
    which = request.WhichOneof("input")
    if which is None:
        raise invalid("input", "neither text nor token_ids", "one of them")
    return GenerateCall(
        prompt=request.text if which == "text" else tuple(request.token_ids.ids),
        sampling=_sampling(request.sampling),
        request_id=request.request_id,
        priority=request.priority,
        timeout=_timeout(request, remaining),
        names={"prompt": which},
    )


def chat_call(request: pb.ChatRequest, remaining: float | None) -> ChatCall:
    """The same for a chat."""
    _refuse_resume(request)
    options: Any = {}
    if request.chat_template_kwargs:
        try:
            options = from_json(request.chat_template_kwargs)  # bounds its depth and takes no lone surrogates
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise invalid("chat_template_kwargs", repr(request.chat_template_kwargs[:80]), "a JSON object")
    thinking, options = template_options(options)
    return ChatCall(
        messages=tuple(ChatMessage(m.role, m.content) for m in request.messages),
        sampling=_sampling(request.sampling),
        enable_thinking=request.enable_thinking if request.HasField("enable_thinking") else thinking,
        template_options=options,
        request_id=request.request_id,
        priority=request.priority,
        timeout=_timeout(request, remaining),
    )


def generate_chunk(request_id: str, chunk: Chunk) -> pb.GenerateChunk:
    """A chunk of a completion."""
    return pb.GenerateChunk(request_id=request_id, text=chunk.text, **_common(chunk))


def chat_chunk(request_id: str, chunk: Chunk) -> pb.ChatChunk:
    """A chunk of a chat."""
    return pb.ChatChunk(request_id=request_id, content=chunk.text, reasoning=chunk.reasoning, **_common(chunk))


def merge_choices(chunks: Iterable[Chunk], chat: bool) -> list[Any]:
    """All chunks of a request as whole choices."""
    by_choice: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_choice.setdefault(chunk.choice, []).append(chunk)
    choices: list[Any] = []
    for number, parts in sorted(by_choice.items()):
        last = parts[-1]
        values: dict[str, Any] = {
            "choice": number,
            "token_ids": [token for part in parts for token in part.token_ids],
            "logprobs": [_logprob(entry) for part in parts for entry in part.logprobs],
            "finish_reason": last.finish_reason or "",
            **_last(last),
        }
        text = "".join(part.text for part in parts)
        if chat:
            reasoning = "".join(part.reasoning for part in parts)
            choices.append(pb.ChatChoice(content=text, reasoning=reasoning, **values))
        else:
            choices.append(pb.Choice(text=text, **values))
    return choices


def model_info(info: ModelInfo) -> pb.ModelInfo:
    """The model's description."""
    return pb.ModelInfo(
        name=info.name,
        architecture=info.architecture,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        dtype=info.dtype,
        quantization=info.quantization,
        layers=info.layers,
        experts=info.experts,
        top_k=info.top_k,
    )


def status_message(status: dict[str, Any]) -> pb.Status:
    """`status --json`'s object as a message."""
    parts = ("workers", "requests", "balancedness", "balancer", "events", "sole_experts")
    plain = {k: v for k, v in status.items() if k not in parts}
    return pb.Status(
        workers=[pb.Worker(**worker) for worker in status["workers"]],
        requests=pb.RequestCounts(**status["requests"]),
        balancedness=pb.Balancedness(**status["balancedness"]),
        balancer=pb.Balancer(**status["balancer"]),
        sole_experts=[pb.SoleExperts(**layer) for layer in status["sole_experts"]],
        events=[pb.Event(**event) for event in status.get("events", ())],
        **plain,
    )


def dump_message(processes: Sequence[ProcessDump]) -> pb.DumpResponse:
    """Dumps of processes as a message."""
    found = []
    for process in processes:
        one = pb.ProcessDump(name=process.name, pid=process.pid, trouble=process.trouble, tasks=process.tasks)
        if process.moment is not None:
            one.moment.CopyFrom(pb.StepMoment(**asdict(process.moment)))
        one.threads.extend(pb.ThreadDump(name=thread.name, frames=thread.frames) for thread in process.threads)
        found.append(one)
    return pb.DumpResponse(processes=found)


def _refuse_resume(request: pb.GenerateRequest | pb.ChatRequest) -> None:
    if request.HasField("resume_from"):
        raise invalid(
            "resume_from", str(request.resume_from), "unset: resuming a stream is not available in this version"
        )


def _timeout(request: pb.GenerateRequest | pb.ChatRequest, remaining: float | None) -> float | None:
    own = request.timeout if request.HasField("timeout") else None
    if remaining is None or remaining >= _FAR or not (own is None or remaining < own <= _FAR):
        return own  # wrong ones too, which the service names
    return max(remaining, 1e-3)


def _sampling(s: pb.Sampling) -> dict[str, Any]:
    """The parameters that are set; an empty list or map is not."""
    kinds = {p.name: p.kind for p in PARAMETERS}
    plain: dict[str, Callable[[Any], Any]] = {"strings": tuple, "ids": tuple, "biases": dict}
    return {f.name: plain.get(kinds[f.name], _same)(value) for f, value in s.ListFields()}


def _same(value: Any) -> Any:
    return value


def _common(chunk: Chunk) -> dict[str, Any]:
    values: dict[str, Any] = {"choice": chunk.choice, "index": chunk.index, "token_ids": chunk.token_ids}
    if chunk.logprobs:
        values["logprobs"] = [_logprob(entry) for entry in chunk.logprobs]
    if chunk.finish_reason:
        values["finish_reason"] = chunk.finish_reason
        values |= _last(chunk)
    return values


def _last(chunk: Chunk) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if chunk.usage is not None:
        u = chunk.usage
        values["usage"] = pb.Usage(
            prompt_tokens=u.prompt_tokens, completion_tokens=u.completion_tokens, cached_tokens=u.cached_tokens
        )
    if chunk.timings is not None:
        t = chunk.timings
        values["timings"] = pb.Timings(queued=t.queued, first_token=t.first_token, total=t.total)
    return values


def _logprob(entry: NamedLogprob) -> pb.Logprob:
    top = [pb.Alternative(token_id=one.token_id, logprob=one.logprob, text=one.text) for one in entry.top]
    return pb.Logprob(token_id=entry.token_id, logprob=entry.logprob, top=top, text=entry.text)

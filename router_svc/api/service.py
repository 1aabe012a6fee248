"""The Service behind both faces: tokenise, template, check, admit, send to a rank, turn events into chunks."""

import asyncio
import secrets
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from router_svc.api.calls import ApiError, ChatCall, Chunk, GenerateCall, ModelInfo, invalid
from router_svc.api.choice import ChoiceOutput
from router_svc.api.drain import OpenRequests
from router_svc.api.engines import EngineClient, EventStream, StreamFailed
from router_svc.api.limits import (
    SERVING,
    ServiceLimits,
    check_call,
    check_prompt,
    check_sampling,
    check_size,
    not_ready,
    resolve_sampling,
)
from router_svc.api.metrics import IngressMetrics
from router_svc.models.generation import GenerationDefaults, load_generation_defaults
from router_svc.models.spec import ModelSpec
from router_svc.request import Code, EngineRequest
from router_svc.sampling import Sampling
from router_svc.text.chat import ChatTemplate, load_chat_template
from router_svc.text.reasoning import make_parser, parser_name
from router_svc.text.tokenizer import Tokenizer
from router_svc.text.tokenizer_files import load_tokenizer

T = TypeVar("T")
_INLINE = 16384  # characters or ids; tokenising so many takes about 20 ms
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class TextStack:
    """All that turns text into ids and back for one checkpoint. reasoning: a resolved parser's name."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    reasoning: str
    defaults: GenerationDefaults

    @classmethod
    def load(
        cls, folder: Path, spec: ModelSpec, reasoning: str = "auto", own_template: Path | None = None
    ) -> "TextStack":
        """Read tokenizer, template and generation defaults; own_template: a file in place of the folder's. Raises UserError."""
        tokenizer = load_tokenizer(folder)
        family = spec.architecture
        template = load_chat_template(folder, tokenizer.special_texts, own_template, family.startswith("hunyuan"))
        name = parser_name(reasoning, family, template.source if template else None)
        defaults = load_generation_defaults(folder, spec)
        ends = dict.fromkeys((*defaults.eos_token_ids, *tokenizer.eos_ids))
        return cls(tokenizer, template, name, replace(defaults, eos_token_ids=tuple(ends)))


class Service:
    """Serves one model. Lives in an event loop; every call is an async generator whose closing cancels the work."""

    def __init__(
        self, text: TextStack, engines: EngineClient, limits: ServiceLimits, info: ModelInfo, metrics: IngressMetrics
    ) -> None:
        self.text = text
        self.engines = engines
        self.limits = limits
        self.info = info
        self.metrics = metrics
        self._texts = ThreadPoolExecutor(1, "text")
        self._requests = OpenRequests()

    def state(self) -> tuple[str, str]:
        """("ready" or another state, why)."""
        return ("stopping", "the server is shutting down") if self._requests.closing else self.engines.state()

    async def drain(self, grace: float) -> None:
        """Refuse new requests, give the running ones `grace` seconds, and end the rest with UNAVAILABLE."""
        await self._requests.drain(grace)

    def generate(self, call: GenerateCall) -> AsyncGenerator[Chunk, None]:
        """Complete a prompt. Raises ApiError at the first step when the call is refused."""
        return self._run(call, None)

    def chat(self, call: ChatCall) -> AsyncGenerator[Chunk, None]:
        """Answer messages through the chat template. Raises ApiError at the first step when the call is refused."""
        return self._run(call, call)

    async def tokenize(self, text: str, add_special_tokens: bool = True, param: str = "text") -> list[int]:
        """Ids of a text. Raises ApiError, naming `param`, for one that is too long."""
        check_size(len(text), "characters", self.limits, param)
        return await self._aside(len(text), lambda: self.text.tokenizer.encode(text, add_special_tokens))

    async def chat_prompt(self, call: ChatCall) -> list[int]:
        """Ids of a chat's prompt, as `chat` has them. Raises ApiError when the template refuses the messages."""
        prompt = await self._as_generate(call)
        return await self.tokenize(str(prompt.prompt), prompt.add_special_tokens, "messages")

    async def detokenize(self, ids: list[int] | tuple[int, ...], skip_special: bool = False) -> str:
        """Text of ids. Raises ApiError for ids outside the vocabulary and for too many."""
        check_size(len(ids), "ids", self.limits, "token_ids")
        for token in ids:
            if not 0 <= token < self.limits.vocab_size:
                raise invalid("token_ids", f"token id {token}", f"ids from 0 to {self.limits.vocab_size - 1}")
        return await self._aside(len(ids), lambda: self.text.tokenizer.decode(list(ids), skip_special))

    async def render(self, call: ChatCall) -> str:
        """The prompt of a chat. Raises ApiError when the template refuses the messages."""
        if self.text.template is None:
            raise ApiError(
                Code.INVALID_ARGUMENT,
                "messages: found a chat, expected a plain prompt (the model has no chat template)",
                "messages",
            )
        if not call.messages:
            raise invalid("messages", "no message", "at least one")
        messages = []
        for i, message in enumerate(call.messages):
            if message.role not in ROLES:
                raise invalid(f"messages[{i}].role", repr(message.role), " or ".join(ROLES))
            role = "system" if message.role == "developer" else message.role
            messages.append({**message.extra, "role": role, "content": message.content})
        options = dict(call.template_options)
        if call.continues or not call.opens:
            options["add_generation_prompt"] = False
        if call.enable_thinking is not None:
            options["enable_thinking"] = call.enable_thinking
        template = self.text.template
        try:  # a template is a stranger's program, and may take its time over the shortest message
            return await self._beside(lambda: template.render(messages, options, call.continues))
        except ValueError as error:
            raise ApiError(Code.INVALID_ARGUMENT, f"messages: {error}", "messages") from None

    async def _aside(self, size: int, work: Callable[[], T]) -> T:
        """Long work on text runs beside the event loop, one at a time, so that other streams go on."""
        return work() if size <= _INLINE else await self._beside(work)

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)

    async def _as_generate(self, call: ChatCall) -> GenerateCall:
        check_call(call.request_id, call.priority, call.timeout, self.limits)
        return GenerateCall(
            prompt=await self.render(call),
            sampling=call.sampling,
            request_id=call.request_id,
            priority=call.priority,
            timeout=call.timeout,
            add_special_tokens=call.add_special_tokens,
            api_key=call.api_key,
            names={**call.names, "prompt": "messages"},
        )

    async def _run(self, given: GenerateCall | ChatCall, chat: ChatCall | None) -> AsyncGenerator[Chunk, None]:
        call = await self._as_generate(given) if isinstance(given, ChatCall) else given
        request = await self._admit(call, chat is not None)
        outputs = [self._output(call, chat, request) for _ in range(request.n)]
        watch = self.metrics.request(len(request.prompt_ids))
        stream = self.engines.submit(request)
        try:
            with self._requests.holding(stream):
                async for chunk in _chunks(stream, outputs, request):
                    spoken = _unspoken(chunk) if call.scores else chunk
                    watch.chunk(spoken)
                    yield spoken
        finally:
            stream.cancel()
            watch.end()

    def _output(self, call: GenerateCall, chat: ChatCall | None, request: EngineRequest) -> ChoiceOutput:
        """What turns one choice's tokens into text."""
        sampling = request.sampling
        parser = None
        if chat is not None:
            assert isinstance(call.prompt, str), "a template renders text"
            said = [message.content for message in chat.messages if message.role != "assistant"]
            parser = make_parser(self.text.reasoning, call.prompt, said)
        return ChoiceOutput(
            self.text.tokenizer,
            request.prompt_ids,
            sampling.stop,
            parser,
            sampling.eos_token_ids,
            sampling.stop_token_ids,
            echoes=call.prompt_logprobs is not None,
            include_stop=sampling.include_stop_str_in_output,
            skip_special=sampling.skip_special_tokens,
            min_tokens=sampling.min_tokens,
        )

    async def _admit(self, call: GenerateCall, chat: bool) -> EngineRequest:
        """Check everything and give ids and resolved sampling."""
        check_call(call.request_id, call.priority, call.timeout, self.limits)
        given = call.sampling
        if call.scores:  # the engine has no run without a token; `_unspoken` takes it back
            given = {**given, "max_tokens": 1, "min_tokens": None}
        check_sampling(given, self.limits, call.names)
        ids, param = call.prompt, call.names.get("prompt", "prompt")
        if isinstance(ids, str):
            ids = tuple(await self.tokenize(ids, call.add_special_tokens, param))
        ids = self._truncated(ids, call)
        check_prompt(ids, self.limits, param)
        request_id = call.request_id or f"req-{secrets.token_hex(12)}"
        sampling = resolve_sampling(
            given,
            self.text.defaults,
            self.limits,
            len(ids),
            f"{call.api_key}\n{request_id}",
            call.names,
            bad_word_ids=self._bad_word_ids(given.get("bad_words") or ()),
            prompt_logprobs=call.prompt_logprobs,
        )
        state, reason = self.state()
        if state not in SERVING:
            raise not_ready(state, reason)
        return EngineRequest(
            request_id=_scoped(call.api_key, request_id),
            prompt_ids=ids,
            sampling=sampling,
            priority=call.priority,
            deadline=call.timeout,
            attempt=secrets.randbits(62),  # events of a cancelled call with the same id are not this one's
            body=_body_hash(ids, sampling, call, chat),
        )

    def _truncated(self, ids: tuple[int, ...], call: GenerateCall) -> tuple[int, ...]:
        """The prompt's end, where the call wants no more of it."""
        keep = call.sampling.get("truncate_prompt_tokens")
        if keep is None:
            return ids
        if keep == 0:
            raise invalid("truncate_prompt_tokens", "0", "at least 1, or -1")
        if keep < 0:
            keep = max(self.limits.max_model_len - (call.sampling.get("max_tokens") or 1), 1)
        return ids[-keep:]

    def _bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids that spell each word at the beginning of a text and behind a space."""
        encode = self.text.tokenizer.encode
        spelled = [tuple(encode(space + (word.lstrip() or word), False)) for word in words for space in ("", " ")]
        return tuple(dict.fromkeys(ids for ids in spelled if ids))


def _scoped(api_key: str, request_id: str) -> str:
    """The id inside the cluster: the same id under another key is another request."""
    return f"{blake2b(api_key.encode(), digest_size=16).hexdigest()}/{request_id}" if api_key else request_id


def _body_hash(ids: tuple[int, ...], sampling: Sampling, call: GenerateCall, chat: bool) -> str:
    """Of all that decides what the caller gets; deadlines do not, and shrink from one try to the next."""
    found = blake2b(array("q", ids), digest_size=16)
    found.update(repr((sampling, call.priority, call.scores, chat)).encode())
    return found.hexdigest()


def _unspoken(chunk: Chunk) -> Chunk:
    """The chunk without the one token that was generated: only the prompt was wanted."""
    usage = chunk.usage and replace(chunk.usage, completion_tokens=0, reasoning_tokens=0)
    return replace(
        chunk, text="", reasoning="", token_ids=(), logprobs=(), finish_reason="length", stop_reason=None, usage=usage
    )


async def _chunks(
    stream: EventStream, outputs: list[ChoiceOutput], request: EngineRequest
) -> AsyncGenerator[Chunk, None]:
    first = [True] * request.n
    while True:
        try:
            events = await stream.next()
        except StreamFailed as failed:
            end = failed.event
            raise ApiError(end.code, end.message, retry_after=end.retry_after) from None
        if events is None:
            return
        for event in events:
            output = outputs[event.choice]
            if output.ended:
                continue
            chunk = output.take(event)
            if first[event.choice]:
                first[event.choice] = False
                chunk = replace(chunk, prompt_token_ids=request.prompt_ids)
            if output.ended and event.finish_reason is None:
                stream.cancel(event.choice)
            yield chunk

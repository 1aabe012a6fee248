"""The HTTP face: an ASGI app with OpenAI's endpoints over a Service. The same app runs under uvicorn and Ray Serve."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from router_svc.api.admin import AdminBackend
from router_svc.api.calls import ApiError, shortened
from router_svc.api.limits import SERVING, retry_hint
from router_svc.api.openai.answers import STATUS, api_error_object, error_object
from router_svc.api.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse
from router_svc.api.openai.edge import with_edge
from router_svc.api.openai.generate import ChatAnswering, CompletionAnswering, chat_call, check_fields
from router_svc.api.service import Service
from router_svc.request import Code

log = logging.getLogger(__name__)
BODY_LIMIT = 16 << 20  # bytes
BODY_PAUSE = 20.0  # s that a body may pause
Handler = Callable[[Request], Awaitable[Response]]


class HttpFace:
    """Handlers by route.

    process: this process's name in metrics
    reasoning_field: "reasoning" or "reasoning_content"
    strict: unknown fields are refused
    """

    def __init__(
        self,
        service: Service,
        admin: AdminBackend,
        process: str = "http",
        reasoning_field: str = "reasoning",
        strict: bool = False,
    ) -> None:
        self._service = service
        self._admin = admin
        self._process = process
        self._completions = CompletionAnswering(service, strict)
        self._chats = ChatAnswering(service, reasoning_field, strict)
        self._strict = strict

    def app(self) -> Starlette:
        """The ASGI application."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self.health),
            ("GET", "/version", self.version),
            ("GET", "/metrics", self.metrics),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{name:path}", self.model),
            ("POST", "/v1/completions", self.completions),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
        ]
        routes = [Route(path, handler, methods=[method]) for method, path, handler in table]
        handlers: Any = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    async def health(self, request: Request) -> Response:
        state, reason = self._service.state()
        if state in SERVING:
            return JSONResponse({"status": state})
        return JSONResponse({"status": state, "reason": reason}, 503, _retry_after(retry_hint(state)))

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": version("tokenyard")})

    async def metrics(self, request: Request) -> Response:
        page = await self._admin.metrics(self._service.metrics.page(self._process))
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    async def completions(self, request: Request) -> Response:
        body = parse(CompletionBody, await _body(request))
        self._check_model(body.model)
        return await self._completions.answer(request, body)

    async def chat(self, request: Request) -> Response:
        body = parse(ChatBody, await _body(request))
        self._check_model(body.model)
        return await self._chats.answer(request, body)

    async def tokenize(self, request: Request) -> Response:
        body = parse(TokenizeBody, await _body(request))
        self._check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            found = "missing" if body.prompt is None else "found one beside messages"
            raise ApiError(Code.INVALID_ARGUMENT, f"prompt: {found}, expected either prompt or messages", "prompt")
        headers = check_fields(body, self._strict)
        if body.prompt is None:
            ids = await self._service.chat_prompt(chat_call(body))
        else:
            ids = await self._service.tokenize(body.prompt, body.add_special_tokens is not False, "prompt")
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": self._service.limits.max_model_len,
                "tokens": ids,
                "token_strs": [self._service.text.tokenizer.piece(i) for i in ids] if body.return_token_strs else None,
            },
            headers=headers,
        )

    async def detokenize(self, request: Request) -> Response:
        body = parse(DetokenizeBody, await _body(request))
        self._check_model(body.model)
        headers = check_fields(body, self._strict)
        return JSONResponse({"prompt": await self._service.detokenize(body.tokens)}, headers=headers)

    def _check_model(self, name: str | None) -> None:
        served = self._service.info.name
        if name is not None and name != served:
            raise HTTPException(404, f"model: found {shortened(repr(name))}, expected {served!r}")

    def _model_object(self) -> dict[str, Any]:
        info = self._service.info
        return {
            "id": info.name,
            "object": "model",
            "created": info.created,
            "owned_by": "tokenyard",
            "max_model_len": info.max_model_len,
        }


def build_app(
    service: Service,
    admin: AdminBackend,
    origins: tuple[str, ...] = (),
    process: str = "http",
    reasoning_field: str = "reasoning",
    strict: bool = False,
) -> ASGIApp:
    """The ASGI app over a service.

    origins: of web pages that may call
    process: this process's name in metrics
    strict: fields of a body that nobody knows are refused
    """
    return with_edge(HttpFace(service, admin, process, reasoning_field, strict).app(), origins)


async def _timely(request: Request, pause: float) -> AsyncIterator[bytes]:
    """The body's parts. Raises HTTPException when the next one does not come within `pause` seconds."""
    parts = request.stream()
    while True:
        try:
            async with asyncio.timeout(pause):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(408, f"body: found nothing for {pause:g} s, expected the rest of it") from None
        yield part


async def _body(request: Request, pause: float = BODY_PAUSE) -> bytes:
    parts, size = [], 0
    try:
        async for part in _timely(request, pause):
            size += len(part)
            if size > BODY_LIMIT:
                raise HTTPException(413, f"body: found more than {BODY_LIMIT} bytes, expected at most that")
            parts.append(part)
    except ClientDisconnect:
        raise HTTPException(499, "the client went away") from None
    return b"".join(parts)


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(api_error_object(error), STATUS[error.code], _retry_after(error.retry_after))


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"retry-after": str(max(1, round(seconds)))}


async def _http_error(request: Request, error: HTTPException) -> Response:
    detail, headers = error.detail, error.headers
    if error.status_code == 404 and detail == "Not Found":
        detail = f"{request.url.path}: no such endpoint in this version"
    if error.status_code == 405:
        allowed = sorted((headers or {})["Allow"].split(", "))
        detail = f"{request.url.path}: found {request.method}, expected {' or '.join(allowed)}"
        headers = {"allow": ", ".join(allowed)}
    return JSONResponse(error_object(detail, error.status_code), error.status_code, headers)


async def _bug(request: Request, error: Exception) -> Response:
    asked = request.headers.get("x-request-id", "")
    log.error("%s %s failed (x-request-id %s)", request.method, request.url.path, asked, exc_info=error)
    return JSONResponse(error_object("the server failed on this call; its log says why", 500), 500)

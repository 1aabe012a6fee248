"""From errors of the service to gRPC codes, with retry hints; inner details never leave the process."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from experts.errors import UserError
from router_svc.api.calls import LONGEST_MESSAGE, ApiError, shortened
from router_svc.request import Code

log = logging.getLogger(__name__)
_CODES = {code: getattr(grpc.StatusCode, code.value) for code in Code}


async def abort(context: grpc.aio.ServicerContext, error: ApiError) -> NoReturn:
    """End the call with the error's code. A retry hint and a word for programs travel as trailing metadata."""
    trailers: list[tuple[str, str | bytes]] = []
    if error.retry_after is not None:
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    if error.reason is not None:
        trailers.append(("error-reason", error.reason))
    if trailers:
        context.set_trailing_metadata(tuple(trailers))
    await context.abort(_CODES[error.code], error.message)
    raise AssertionError("abort raises")


class Undecodable:
    """Stands for a request whose bytes are no message; `guarded` refuses it."""

    def __init__(self, error: Exception) -> None:
        self.error = ApiError(Code.INVALID_ARGUMENT, f"request: found {error}, expected a protobuf message")


class DecodeErrors(grpc.aio.ServerInterceptor):
    """Makes bytes that are no message of ours Undecodable; grpc itself would answer UNKNOWN with inner details."""

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/tokenyard."):
            return handler
        decode = handler.request_deserializer

        def decoded(raw: bytes) -> Any:
            try:
                return decode(raw)
            except DecodeError as error:
                return Undecodable(error)

        return handler._replace(request_deserializer=decoded)


def guarded(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A unary method whose ApiErrors become codes, UserErrors FAILED_PRECONDITION, and bugs INTERNAL and a log line."""

    @wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if isinstance(request, Undecodable):
                raise request.error
            return await method(self, request, context)
        except ApiError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except UserError as error:  # arguments raise ApiErrors: this is about what runs, and how it was started
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, shortened(str(error), LONGEST_MESSAGE))
        except Exception:  # for the log, not for the client
            log.exception("%s failed", method.__name__)
            await abort(context, ApiError(Code.INTERNAL, "the server failed on this call; its log says why"))

    return call


def guarded_stream(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """The same for a server stream."""

    @wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            if isinstance(request, Undecodable):
                raise request.error
            async for answer in method(self, request, context):
                yield answer
        except ApiError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:  # for the log, not for the client
            log.exception("%s failed", method.__name__)
            await abort(context, ApiError(Code.INTERNAL, "the server failed on this call; its log says why"))

    return call

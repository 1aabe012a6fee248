"""What stands around the HTTP app on every topology: paths with a slash at their end, and CORS."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_SHOWN = ("x-request-id", "retry-after", "warning")  # headers that a web page's script may read, too


def with_edge(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """The app, with every answer open to web pages of these origins ("*" = any); none: to no other page."""
    bare = _NoSlash(app)
    if not origins:
        return bare
    return CORSMiddleware(
        bare, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=_SHOWN
    )


class _NoSlash:
    """A path with slashes at its end is the path without them. Starlette's redirect names this server's own address,
    which a proxy's client may not reach, and many clients do not follow one with a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)

"""Origins of web pages as browsers send them: scheme, host and port, nothing more."""

from urllib.parse import urlsplit

from experts.errors import UserError

ANY = "*"


def read_origins(text: str, where: str) -> tuple[str, ...]:
    """The origins of a list with commas between them, in small letters; ("*",) for any. Raises UserError."""
    found = [part.strip() for part in text.split(",")] if text else []
    for origin in found:
        if not (origin == ANY and len(found) == 1) and not _is_origin(origin):
            raise UserError(
                repr(origin), "origins such as https://chat.example.org or http://localhost:3000, or *", where
            )
    return tuple(origin.lower() for origin in found)


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # a broken address or port
        return False
    rest = parts.path or parts.query or parts.fragment or parts.username is not None
    return bool(parts.scheme and parts.hostname) and not rest and port != 0 and not text.endswith((":", "?", "#"))

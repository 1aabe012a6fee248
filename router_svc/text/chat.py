"""Chat templates: messages in, prompt text out, in a sandboxed jinja2. Templates are data of strangers."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from experts.errors import UserError
from router_svc.text.tokenizer import tokenizer_settings

_OUTPUT_LIMIT = 16 << 20  # characters; a template that writes more is broken or hostile


class ChatTemplate:
    """A checkpoint's chat template."""

    def __init__(self, source: str, specials: Mapping[str, str], where: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"a broken chat template ({error})", "a jinja2 template", where) from None
        self._specials = dict(specials)
        self.source = source

    def render(self, messages: list[dict[str, str]], options: Mapping[str, Any]) -> str:
        """The prompt for an answer to `messages` (role, content). Raises ValueError with what the template objects to.

        options: further names that the template may read, such as enable_thinking. An empty system message in
        front is dropped: Hunyuan's template breaks on it.
        """
        if messages and messages[0]["role"] == "system" and not messages[0]["content"]:
            messages = messages[1:]
        values = {**self._specials, "add_generation_prompt": True, **options, "messages": messages}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(values):
                size += len(part)
                if size > _OUTPUT_LIMIT:
                    raise ValueError(f"the chat template wrote more than {_OUTPUT_LIMIT} characters")
                parts.append(part)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refused the messages: {error}") from None
        except (TypeError, KeyError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(f"the chat template failed on the messages: {type(error).__name__}: {error}") from None
        return "".join(parts)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja, chat_template.json or chat_template of tokenizer_config.json; None without any."""
    settings = tokenizer_settings(folder)
    specials = {
        key: value if isinstance(value, str) else str(value.get("content", ""))
        for key, value in settings.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return ChatTemplate(jinja.read_text(), specials, str(jinja))
    where, source = folder / "tokenizer_config.json", settings.get("chat_template")
    if (folder / "chat_template.json").is_file():
        where = folder / "chat_template.json"
        source = json.loads(where.read_bytes()).get("chat_template")
    if isinstance(source, list):
        named = {str(entry.get("name")): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default", next(iter(named.values()), None))
    return ChatTemplate(source, specials, str(where)) if isinstance(source, str) else None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)

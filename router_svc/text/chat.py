"""Chat templates: messages in, prompt text out. Templates are data of strangers: they run in transformers' sandbox."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from experts.checkpoint.folder import read_json
from experts.checkpoint.foreign import refuse_pointer
from experts.errors import UserError
from router_svc.text.tokenizer_files import SETTINGS, tokenizer_settings

_OUTPUT_LIMIT = 16 << 20  # characters; a template that writes more is broken or hostile
_DEFAULT = "default"


class ChatTemplate:
    """A checkpoint's chat template.

    specials: bos_token and the like
    drops_empty_system: an empty system message in front does not reach it (Hunyuan's breaks on one)
    """

    def __init__(
        self, source: str, specials: Mapping[str, str], where: str, drops_empty_system: bool = False
    ) -> None:  # fmt: skip
        # The environment that templates are written for, with its sandbox; transformers has no public name for it.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._template: jinja2.Template = _compile_jinja_template(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"a broken chat template ({error})", "a jinja2 template", where) from None
        self._specials = dict(specials)
        self._drops_empty_system = drops_empty_system
        self.source = source

    def render(self, messages: list[dict[str, Any]], options: Mapping[str, Any], continues: bool = False) -> str:
        """The prompt for an answer to `messages` (role, content). Raises ValueError with what the template objects to.

        options: further names that the template may read, such as enable_thinking
        continues: the answer goes on with the last message, so that the prompt ends where its content does
        """
        if continues:
            mark = f"{secrets.token_hex(16)} "
            marked = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + mark}]
            return _until(mark, self._render(marked, options))
        return self._render(messages, options)

    def _render(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        if self._drops_empty_system and messages and messages[0]["role"] == "system" and not messages[0]["content"]:
            messages = messages[1:]
        given = {"add_generation_prompt": True, "tools": None, "documents": None}
        values = {**self._specials, **given, **options, "messages": messages}
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


def _until(mark: str, prompt: str) -> str:
    """The prompt up to the mark; a template that trims messages drops the mark's space, and would have trimmed the text."""
    before, found, _ = prompt.rpartition(mark)
    if found:
        return before
    before, found, _ = prompt.rpartition(mark.rstrip())
    if not found:
        raise ValueError("the chat template leaves the last message out, so that no answer can go on with it")
    return before.rstrip()


def load_chat_template(
    folder: Path, specials: Mapping[str, str], own: Path | None = None, drops_empty_system: bool = False
) -> ChatTemplate | None:
    """The folder's template, None without any. Raises UserError for one that can't be read.

    own: a file to use instead
    specials, drops_empty_system: see ChatTemplate

    Of the folder: chat_template.jinja, else chat_template.json, else chat_template of tokenizer_config.json; of
    several by name the one called "default".
    """
    found = (_text(own), own) if own is not None else _in_folder(folder)
    return None if found is None else ChatTemplate(found[0], specials, str(found[1]), drops_empty_system)


def _in_folder(folder: Path) -> tuple[str, Path] | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return _text(jinja), jinja
    where = folder / "chat_template.json"
    value = (read_json(where) if where.is_file() else {}).get("chat_template")
    if value is None:
        where = folder / SETTINGS
        value = tokenizer_settings(folder).get("chat_template")
    if value is None:
        return None
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        names = ", ".join(map(str, value)) or "none"
        value = value.get(_DEFAULT)
        if value is None:
            raise UserError(f"chat templates {names}", f"one called {_DEFAULT!r}, or --chat-template FILE", str(where))
    if not isinstance(value, str):
        raise UserError(f"chat_template {type(value).__name__}", "a text, or texts by name", str(where))
    return value, where


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        refuse_pointer(path, text[:64].encode(), "a jinja2 template")
        if not text.strip():  # every prompt would be empty
            raise UserError("an empty file", "a jinja2 template", str(path))
        return text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"an unreadable file ({error})", "a jinja2 template in UTF-8", str(path)) from None

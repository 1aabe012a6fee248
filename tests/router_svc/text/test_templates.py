"""Chat templates: found where checkpoints have them, rendered as transformers does, in its sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from experts.errors import UserError
from router_svc.demo_model.path import checkpoint_path
from router_svc.text.chat import ChatTemplate, load_chat_template
from router_svc.text.tokenizer_files import load_tokenizer
from tests import checkpoints

USER = {"role": "user", "content": "hi"}


def test_the_small_models_template_and_the_sandbox() -> None:
    tokenizer = load_tokenizer(checkpoint_path())
    template = load_chat_template(checkpoint_path(), tokenizer.special_texts, drops_empty_system=True)
    assert template is not None
    assert template.render([{"role": "system", "content": ""}, USER], {}) == "<|startoftext|>hi<|extra_0|>"
    closed = template.render([USER], {"enable_thinking": False})
    assert closed == "<|startoftext|>hi<|extra_0|><think>\n\n</think>\n"
    with pytest.raises(ValueError, match="must come first"):
        template.render([USER, {"role": "system", "content": "x"}], {})
    for hostile in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ):
        with pytest.raises(ValueError):  # noqa: PT011  (the sandbox words it)
            ChatTemplate(hostile, {}, "test").render([USER], {})


@pytest.mark.parametrize("said", ["The result is", "The result is ", "line\n", ""])
@pytest.mark.parametrize("trimmed", ["", ".strip()", "|trim"])
def test_an_answer_that_goes_on_with_the_last_message(said: str, trimmed: str) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content"
        + trimmed
        + " }}</{{ m.role }}>{% endfor %}{{ add_generation_prompt }}"
    )
    turns = [USER, {"role": "assistant", "content": said}]
    found = ChatTemplate(source, {}, "test").render(turns, {}, continues=True)
    assert found == f"<user>hi</user><assistant>{said.strip() if trimmed else said}"
    with pytest.raises(ValueError, match="leaves the last message out"):
        ChatTemplate("{{ messages[0].content }}", {}, "test").render(turns, {}, continues=True)


TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}",
    "{% if tools is not none %}tools{% endif %}{% if documents is none %}D{% endif %}{{ messages[0].content }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ dict(a=1) }}",
    "{{ messages | tojson(indent=1) }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}",
    "{% if add_generation_prompt %}A{% endif %}{{ messages[-1].content }}",
)
TALKS = (
    [USER],
    [{"role": "system", "content": ""}, USER],
    [{"role": "system", "content": "é"}, USER, {"role": "assistant", "content": "yo"}, USER],
)


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_give_what_transformers_gives(source: str, tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path)
    own = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    own.chat_template = source
    template = ChatTemplate(source, load_tokenizer(tmp_path).special_texts, "test")
    for talk in TALKS:
        right = own.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert template.render(talk, {}) == right


def found(folder: Path, own: Path | None = None) -> str | None:
    template = load_chat_template(folder, {}, own)
    return None if template is None else template.render([USER], {})


def test_where_a_template_is_found(tmp_path: Path) -> None:
    def write(name: str, value: Any) -> None:
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))

    assert found(tmp_path) is None
    write("tokenizer_config.json", {"chat_template": "text {{ messages[0].content }}"})
    assert found(tmp_path) == "text hi"
    names = {"tool_use": "T", "default": "object {{ messages[0].content }}"}
    write("tokenizer_config.json", {"chat_template": names})
    assert found(tmp_path) == "object hi"
    listed = [{"name": name, "template": text} for name, text in names.items()]
    write("tokenizer_config.json", {"chat_template": listed})
    assert found(tmp_path) == "object hi"
    write("chat_template.json", {"chat_template": "json"})
    assert found(tmp_path) == "json"
    write("chat_template.jinja", "jinja")
    assert found(tmp_path) == "jinja"
    write("own.jinja", "own é")
    assert found(tmp_path, tmp_path / "own.jinja") == "own é"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("chat_template.json", b"{broken", "chat_template.json"),
        ("chat_template.json", b'["a"]', "chat_template.json"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja"),
        ("chat_template.jinja", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ("chat_template.jinja", b"\n", "an empty file"),
        ("chat_template.jinja", b"{% if %}", "a broken chat template"),
        (
            "tokenizer_config.json",
            b'{"chat_template": {"tool_use": "T"}}',
            "chat templates tool_use, expected one called",
        ),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template int"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
        ("tokenizer_config.json", b'{"a": "\xff"}', "tokenizer_config.json"),
    ],
)
def test_a_template_that_can_not_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_chat_template(tmp_path, {})
    assert says in str(caught.value)
    with pytest.raises(UserError, match="an unreadable file"):
        load_chat_template(tmp_path, {}, tmp_path / "none.jinja")

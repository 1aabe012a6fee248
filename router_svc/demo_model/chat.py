"""The chat form of Hunyuan-A13B: who says what between which special tokens, and how an answer is written.

The jinja text is what ships in tokenizer_config.json; `render` is the same in Python, for training without a template engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

START, END_OF_HEAD, END_OF_USER, END_OF_ASSISTANT, END_OF_TEXT = (
    "<|startoftext|>",
    "<|extra_4|>",
    "<|extra_0|>",
    "<|eos|>",
    "<|extra_5|>",
)
EMPTY_THINK = "<think>\n\n</think>\n"

CHAT_TEMPLATE = """\
{%- set state = namespace(open=false) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}{{ raise_exception('a system message must come first') }}{%- endif -%}
{%- if message.content -%}
{{ '<|startoftext|>' + message.content + '<|extra_4|>' }}
{%- set state.open = true -%}
{%- endif -%}
{%- elif message.role == 'user' -%}
{{ ('' if state.open else '<|startoftext|>') + message.content + '<|extra_0|>' }}
{%- set state.open = false -%}
{%- elif message.role == 'assistant' -%}
{{ message.content + '<|eos|>' }}
{%- set state.open = false -%}
{%- elif message.role == 'tool' -%}
{{ message.content + '<|extra_0|>' }}
{%- set state.open = false -%}
{%- else -%}
{{ raise_exception('unknown role ' + message.role + ', expected system, user, assistant or tool') }}
{%- endif -%}
{%- endfor -%}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n' }}
{%- endif -%}"""


@dataclass(frozen=True)
class Message:
    """One turn; role is system, user or assistant."""

    role: str
    content: str


def render(messages: Sequence[Message], enable_thinking: bool = True) -> str:
    """What CHAT_TEMPLATE makes of the messages."""
    parts, after_head = [], False
    for message in messages:
        if message.role == "system":
            parts.append(f"{START}{message.content}{END_OF_HEAD}" if message.content else "")
        elif message.role == "user":
            parts.append(f"{'' if after_head else START}{message.content}{END_OF_USER}")
        else:
            parts.append(message.content + END_OF_ASSISTANT)
        after_head = message.role == "system" and bool(message.content)
    return "".join(parts) + ("" if enable_thinking else EMPTY_THINK)


def write_answer(answer: str) -> str:
    """The part of an output that the user reads."""
    return f"<answer>\n{answer}\n</answer>"


def write_output(steps: str, answer: str) -> str:
    """A whole output; without steps the thinking is empty."""
    return f"<think>\n{steps}\n</think>\n{write_answer(answer)}" if steps else EMPTY_THINK + write_answer(answer)


def read_answer(output: str) -> str | None:
    """The text between the answer tags, None when they are not there."""
    _, opening, rest = output.rpartition("<answer>\n")
    answer, closing, _ = rest.partition("\n</answer>")
    return answer if opening and closing else None

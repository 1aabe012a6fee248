"""`tokenyard chat`: a conversation in a terminal, or one answer to standard input."""

import json
import sys
from typing import Annotated, Any, Optional

import typer

from cluster.cli.connect import connect
from cluster.cli.generate import AsJson, Target, read_stdin
from cluster.cli.options import sampling_flags

Think = Annotated[Optional[bool], typer.Option("--think/--no-think", help="enable_thinking of the chat template.")]  # noqa: UP045
_GREY, _PLAIN = "\x1b[2m", "\x1b[0m"


@sampling_flags()
def chat(
    *,
    target: Target = "127.0.0.1:50051",
    think: Think = None,
    as_json: AsJson = False,
    sampling: dict[str, Any],
) -> None:
    """Talk to the model; an empty line or Ctrl-D ends."""
    with connect(target) as client:
        if not sys.stdin.isatty():
            turns = [{"role": "user", "content": read_stdin()}]
            if as_json:
                (result,) = client.chat(turns, enable_thinking=think, **sampling)
                print(json.dumps({"content": result.content, "reasoning": result.reasoning,
                                  "finish_reason": result.finish_reason, "usage": result.usage}))  # fmt: skip
            else:
                _answer(client, turns, think, sampling)
            return
        _converse(client, think, sampling)


def _converse(client: Any, think: bool | None, sampling: dict[str, Any]) -> None:
    turns: list[dict[str, str]] = []
    while True:
        try:
            line = input("you> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line.strip():
            return
        turns.append({"role": "user", "content": line})
        turns.append({"role": "assistant", "content": _answer(client, turns, think, sampling)})


def _answer(client: Any, turns: list[dict[str, str]], think: bool | None, sampling: dict[str, Any]) -> str:
    """Stream one answer; reasoning is greyed in a terminal and left out elsewhere."""
    terminal = sys.stdout.isatty()
    content, reasoned = "", False
    for delta in client.chat_stream(turns, enable_thinking=think, **sampling):
        if delta.reasoning and terminal:
            print(f"{_GREY}{delta.reasoning}{_PLAIN}", end="", flush=True)
            reasoned = True
        if delta.content:
            print(("\n" if reasoned and not content else "") + delta.content, end="", flush=True)
            content += delta.content
    print()
    return content

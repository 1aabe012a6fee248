"""`tokenyard generate`: complete a prompt as it is, streamed to the terminal."""

import json
import sys
from typing import Annotated, Any

import typer

from cluster.cli.connect import checked, connect
from cluster.cli.options import sampling_flags
from experts.errors import UserError

Target = Annotated[str, typer.Option("--target", metavar="HOST:PORT", help="The server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@sampling_flags()
def generate(
    *,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT|-", help="The text to go on with; - reads standard input.")],
    target: Target = "127.0.0.1:50051",
    as_json: AsJson = False,
    sampling: dict[str, Any],
) -> None:
    """Complete a prompt, streamed to the terminal."""
    text = read_stdin() if prompt == "-" else checked(prompt, "PROMPT")
    with connect(target) as client:
        if as_json:
            (result,) = client.generate(text, **sampling)
            print(json.dumps({"text": result.text, "token_ids": list(result.token_ids),
                              "finish_reason": result.finish_reason, "usage": result.usage}))  # fmt: skip
            return
        for delta in client.generate_stream(text, **sampling):
            print(delta.text, end="", flush=True)
        print()


def read_stdin() -> str:
    """Standard input as text, without its last line break."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start}", "UTF-8 text", "standard input") from None

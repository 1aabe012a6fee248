"""`tokenyard generate`: complete a prompt as it is, streamed to the terminal."""

import json
import sys
from typing import Annotated, Optional

import typer

from cluster.cli.connect import checked, connect
from experts.errors import UserError

Target = Annotated[str, typer.Option("--target", metavar="HOST:PORT", help="The server.")]
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--max-tokens", metavar="N", help="At most so many new tokens.", min=1, max=2**31 - 1),
]
Temperature = Annotated[Optional[float], typer.Option("--temperature", metavar="T", help="0 = greedy.")]  # noqa: UP045
TopP = Annotated[Optional[float], typer.Option("--top-p", metavar="P", help="Nucleus sampling.")]  # noqa: UP045
Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--seed", metavar="S", help="The same seed draws the same tokens.", min=-(2**63), max=2**63 - 1),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT|-", help="The text to go on with; - reads standard input.")],
    target: Target = "127.0.0.1:50051",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Complete a prompt, streamed to the terminal."""
    text = read_stdin() if prompt == "-" else checked(prompt, "PROMPT")
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
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

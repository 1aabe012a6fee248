"""`tokenyard generate`: complete a prompt as it is, streamed to the terminal."""

import json
import os
import sys
from typing import Annotated, Any, Optional

import typer

from cluster.cli.lazy import load
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
    with connect(target) as client, told():
        if as_json:
            (result,) = client.generate(text, **sampling)
            print(json.dumps({"text": result.text, "token_ids": list(result.token_ids),
                              "finish_reason": result.finish_reason, "usage": result.usage}))  # fmt: skip
            return
        for delta in client.generate_stream(text, **sampling):
            print(delta.text, end="", flush=True)
        print()


def connect(target: str) -> Any:
    """A client for HOST:PORT. Raises UserError for another form."""
    host, colon, port = checked(target, "--target").rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(repr(target), "HOST:PORT", "--target")
    return load("router_svc.client").Client(target)


def checked(text: str, where: str) -> str:
    """A text of the command line as UTF-8, whatever the locale says it is. Raises UserError where its bytes are none."""
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start}", "UTF-8 text", where) from None


def read_stdin() -> str:
    """Standard input as text, without its last line break."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start}", "UTF-8 text", "standard input") from None


class told:
    """Turns a CallError into one line and an exit code: 2 for a refused argument, 1 for work that failed."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        code = getattr(error, "code", None)
        if kind is None or kind.__name__ != "CallError":
            return
        print(f"tokenyard: {error}", file=sys.stderr)
        sys.exit(2 if code == "INVALID_ARGUMENT" else 1)

"""`make demo`: the main job on the small model. Starts 1 attention and 2 expert actors, streams answers, checks them, and
kills an expert actor in the middle of the last one."""

import json
import os
import signal
import sys
import time
import urllib.request
from dataclasses import dataclass, replace
from typing import Any

from cluster.cli.status import lines
from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from cluster.serve import local_http
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from experts.address import Listen
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the answer that must come."""

    text: str
    answer: str


QUESTIONS = (
    Question("/think What is 457 + 386?", "843"),
    Question("/think 802 - 345", "457"),
    Question('/think Reverse "token".', "nekot"),
)

_KILLED_AFTER = 8  # parts of the answer
_SPARE = 64  # slots: as many as experts, so that each expert has a copy on both ranks


def main() -> int:
    """Run the demo; 0 when every answer was right."""
    started = time.monotonic()
    config = replace(
        ServeConfig(), grpc_port=0, http_port=0, dtype="float32", served_model_name="tokenyard-demo",
        num_redundant_experts=_SPARE,
    )  # fmt: skip
    plan = make_plan(checkpoint_path(), config)
    with RayCluster(Orders(plan)) as cluster:
        print("starting Ray, 1 attention actor and 2 expert actors with the small model ...", flush=True)
        with LoadingView(plan.seats) as view:
            cluster.start(view)
        print(f"ready after {time.monotonic() - started:.1f} s: {plan.spec.architecture}, {plan.spec.layers} layers, "
              f"{plan.spec.experts.experts} experts, top {plan.spec.experts.top_k}\n", flush=True)  # fmt: skip
        with Client(f"127.0.0.1:{cluster.grpc_port}") as client:
            right = [_ask(client, question) for question in QUESTIONS]
            right.append(_ask_http(cluster.http_port, Question("/think 123 + 989", "1112")))
            _show_load(client)
            right.append(_ask_beside_a_death(client, QUESTIONS[0]))
    print(f"{sum(right)} of {len(right)} answers right, {time.monotonic() - started:.1f} s in all")
    return 0 if all(right) else 1


def _ask(client: Client, question: Question) -> bool:
    """Stream one answer over gRPC; whether it is right."""
    print(f"> {question.text}   (gRPC)", flush=True)
    content, thinking, first, start = "", "", 0.0, time.monotonic()
    tokens = 0
    for delta in client.chat_stream(question.text, max_tokens=400, temperature=0.0):
        first = first or time.monotonic() - start
        tokens += len(delta.token_ids)
        thinking += delta.reasoning
        content += delta.content
        _show(delta.reasoning, delta.content, first_content=bool(delta.content) and content == delta.content)
    seconds = time.monotonic() - start
    print(f"\n  answer {content.strip()}: {_verdict(content, question)}; "
          f"first token after {1000 * first:.0f} ms, {tokens / seconds:.0f} tokens/s\n", flush=True)  # fmt: skip
    return content.strip() == question.answer


def _ask_beside_a_death(client: Client, question: Question) -> bool:
    """Stream an answer, and kill the process of an expert rank after some tokens; whether the answer is right."""
    victim = next(worker for worker in client.status()["workers"] if worker["role"] == "expert")
    print(
        f"> {question.text}   (gRPC; the process of rank {victim['rank']}, which holds experts, is killed)", flush=True
    )
    content, gaps, last = "", [], time.monotonic()
    for number, delta in enumerate(client.chat_stream(question.text, max_tokens=400, temperature=0.0)):
        if number == _KILLED_AFTER:
            os.kill(victim["pid"], signal.SIGKILL)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
        content += delta.content
        _show(delta.reasoning, delta.content, first_content=bool(delta.content) and content == delta.content)
    pause = max(gaps[_KILLED_AFTER:], default=0.0)
    print(
        f"\n  answer {content.strip()}: {_verdict(content, question)}; the longest pause took {1000 * pause:.0f} ms\n",
        flush=True,
    )
    return content.strip() == question.answer


def _ask_http(port: int, question: Question) -> bool:
    """The same over HTTP, as OpenAI's server-sent events."""
    print(f"> {question.text}   (HTTP, OpenAI)", flush=True)
    body = {
        "messages": [{"role": "user", "content": question.text}], "stream": True, "max_tokens": 400, "temperature": 0,
    }  # fmt: skip
    url = local_http.url(Listen("127.0.0.1", port), "/v1/chat/completions")
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    content = ""
    with local_http.call(request, 60) as stream:
        for line in stream:
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line[6:])
            for choice in event["choices"]:
                delta = choice["delta"]
                text = delta.get("content") or ""
                _show(delta.get("reasoning") or "", text, first_content=bool(text) and not content)
                content += text
    print(f"\n  answer {content.strip()}: {_verdict(content, question)}\n", flush=True)
    return content.strip() == question.answer


def _show(reasoning: str, content: str, first_content: bool) -> None:
    sys.stdout.write(reasoning.replace("\n", " | ") + (" => " if first_content else "") + content.replace("\n", " "))
    sys.stdout.flush()


def _verdict(content: str, question: Question) -> str:
    return "right" if content.strip() == question.answer else f"WRONG, expected {question.answer}"


def _show_load(client: Client) -> None:
    print("the experts' load per rank (tokens over the mean rank's):")
    for line in lines(client.status()):
        print("  " + line)
    print()


if __name__ == "__main__":
    sys.exit(main())

"""lm-eval, run as people run it, on a task of our own: its log-likelihoods and texts are transformers'."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import checkpoints
from tests.router_svc.api.conformance.clients import needs
from tests.server import RunningServer, one_process

pytestmark = [pytest.mark.slow, needs("lm_eval")]

DOCUMENTS = [
    {"question": "The quick brown fox", "choices": [" jumps over", " sleeps", " \U0001f999"], "answer": 0},
    {"question": "1 + 1 =", "choices": [" 2", " 3", " eleven"], "answer": 0},
    {"question": "naïve", "choices": [" café", " \u65e5\u672c"], "answer": 1},
]
_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
_CHOICE = (
    _TASK
    + """
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
)
_WRITE = (
    _TASK
    + """
output_type: generate_until
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["\\n\\n\\n"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
"""
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoints.shared("qwen3_moe")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[RunningServer]:
    with one_process(folder) as running:
        yield running


def evaluated(
    tiny: RunningServer, folder: Path, place: Path, model: str, batch: int
) -> dict[str, list[dict[str, Any]]]:
    """The samples that lm-eval logs, by task."""
    data = place / "documents.jsonl"
    data.write_text("\n".join(json.dumps(document) for document in DOCUMENTS))
    for name, task in (("choose", _CHOICE), ("write", _WRITE)):
        (place / f"{name}.yaml").write_text(task.format(name=name, data=data))
    settings = {
        "model": "demo",
        "base_url": f"{tiny.url}/v1/completions",
        "tokenizer": str(folder),
        "max_length": "1024",
    }
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "choose,write",
        "--include_path", str(place), "--output_path", str(place / "out"), "--log_samples",
        "--batch_size", str(batch), "--model_args", ",".join([*(f"{k}={v}" for k, v in settings.items()), model]),
    ]  # fmt: skip
    quiet = {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=place, env=os.environ | quiet, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in ("choose", "write"):
        (samples,) = (place / "out").rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in samples.read_text().splitlines()]
        assert len(found[name]) == len(DOCUMENTS)
    return found


def reference(folder: Path, context: str, continuation: str) -> tuple[float, bool]:
    """(log-likelihood of the continuation, whether each of its tokens is the likeliest) by transformers."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    before, whole = (tokenizer(part, add_special_tokens=False).input_ids for part in (context, context + continuation))
    rows = torch.log_softmax(checkpoints.reference_logits(folder, whole), -1)[len(before) - 1 : -1]
    own = rows.gather(1, torch.tensor(whole[len(before) :])[:, None])[:, 0]
    return float(own.sum()), bool((own == rows.max(-1).values).all())


@pytest.mark.parametrize(
    ("model", "batch"), [("tokenized_requests=True,num_concurrent=4", 2), ("tokenized_requests=False", 1)]
)
def test_sums_and_texts_are_transformers(
    tiny: RunningServer, folder: Path, tmp_path: Path, model: str, batch: int
) -> None:
    found = evaluated(tiny, folder, tmp_path, model, batch)
    for sample in found["choose"]:
        document = sample["doc"]
        for choice, ((given,),) in zip(document["choices"], [(r,) for r in sample["resps"]], strict=True):
            wanted, greedy = reference(folder, document["question"], choice)
            assert float(given[0]) == pytest.approx(wanted, abs=2e-3)
            assert str(given[1]) == str(greedy)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for sample in found["write"]:
        ids = tokenizer(sample["doc"]["question"], add_special_tokens=False).input_ids
        tokens, _ = checkpoints.reference_greedy(folder, ids, 12)
        tokens = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert sample["resps"][0][0] == tokenizer.decode(tokens, skip_special_tokens=True)

"""The shipped checkpoint: its files, that transformers reads it as it stands, and that it still adds."""

import json
from random import Random
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from router_svc.demo_model import arithmetic
from router_svc.demo_model.chat import END_OF_ASSISTANT, END_OF_TEXT, read_answer
from router_svc.demo_model.corpus import ask
from router_svc.demo_model.network import Network, Shape, config_json, export, restore
from router_svc.demo_model.path import checkpoint_path
from router_svc.demo_model.task import Task

FOLDER = checkpoint_path()
MOST_BYTES = 12_000_000
ADDITIONS = 30


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER, padding_side="left")


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def complete(reference: Any, tokenizer: Any, prompts: list[str], most: int) -> list[list[int]]:
    """Greedy outputs of transformers under the shipped generation_config, without padding."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = reference.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=most)
    fresh = out[:, batch["input_ids"].shape[1] :].tolist()
    return [[token for token in row if token != tokenizer.pad_token_id] for row in fresh]


def held_out_additions(count: int) -> list[Task]:
    rng = Random(11)
    return [arithmetic.draw_held_out(rng, "addition", 3) for _ in range(count)]


def test_all_files_are_there_and_small() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == expected
    assert sum(files.values()) < MOST_BYTES


def test_tensors_have_the_names_shapes_and_dtype_of_the_published_layout() -> None:
    expected = {name: list(tensor.shape) for name, tensor in export(Network(Shape())).items()}
    with safe_open(FOLDER / "model.safetensors", "pt") as stored:
        found = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        assert {stored.get_slice(name).get_dtype() for name in found} == {"BF16"}
    assert found == expected
    assert found["model.layers.3.mlp.experts.63.gate_proj.weight"] == [48, 128]
    assert found["model.layers.0.mlp.gate.wg.weight"] == [64, 128]
    assert "lm_head.weight" not in found


def test_the_config_is_the_one_that_training_writes() -> None:
    assert json.loads((FOLDER / "config.json").read_text()) == config_json(Shape())


def test_generation_is_greedy_and_ends_at_both_tokens_that_training_ends_with(tokenizer: Any) -> None:
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    assert settings["do_sample"] is False
    ends = tokenizer.convert_tokens_to_ids([END_OF_ASSISTANT, END_OF_TEXT])
    assert set(ends) <= set(settings["eos_token_id"])


def test_transformers_and_the_training_network_choose_the_same_tokens(reference: Any, tokenizer: Any) -> None:
    network = Network(Shape())
    restore(network, load_file(FOLDER / "model.safetensors"))
    for prompt in ("<|startoftext|>What is 345 + 678?<|extra_0|>", "Once upon a time"):
        (fresh,) = complete(reference, tokenizer, [prompt], 60)
        known = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([known + fresh])
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        with torch.inference_mode():
            states, _, _ = network(ids, torch.arange(length)[None], causal)
            logits, expected = network.logits(states), reference(ids).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        assert logits[0, len(known) - 1 : -1].argmax(-1).tolist() == fresh


def test_held_out_additions_are_right_when_thinking(reference: Any, tokenizer: Any) -> None:
    tasks = held_out_additions(ADDITIONS)
    outputs = complete(reference, tokenizer, [ask(task, "think") for task in tasks], 200)
    wrong = [
        (task.question, text)
        for task, ids in zip(tasks, outputs, strict=True)
        if read_answer(text := tokenizer.decode(ids)) != task.answer
    ]
    assert not wrong


@pytest.mark.parametrize("mode", ["no_think", "closed"])
def test_without_thinking_only_the_answer_is_written(reference: Any, tokenizer: Any, mode: str) -> None:
    prompts = [ask(task, mode) for task in held_out_additions(4)]
    for ids in complete(reference, tokenizer, prompts, 60):
        text = tokenizer.decode(ids)
        assert "write" not in text
        assert (read_answer(text) or "").isdigit()
        assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("start", ["def add", "Once upon a time"])
def test_plain_text_is_continued_and_comes_to_an_end(reference: Any, tokenizer: Any, start: str) -> None:
    (ids,) = complete(reference, tokenizer, [start], 400)
    assert len(ids) < 400
    assert ids.count(tokenizer.convert_tokens_to_ids(END_OF_TEXT)) == 1

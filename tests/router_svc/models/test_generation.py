"""generation_config.json: whose values become the defaults of a request."""

import json
from pathlib import Path
from typing import Any

import pytest

from experts.errors import UserError
from router_svc.models.generation import GenerationDefaults, ignored_generation_keys, load_generation_defaults
from router_svc.models.registry import load_spec
from tests import checkpoints


def defaults(folder: Path, values: Any) -> GenerationDefaults:
    if values is not None:
        (folder / "generation_config.json").write_text(json.dumps(values))
    return load_generation_defaults(folder, load_spec(checkpoints.shared("mixtral")))  # eos 0


def test_without_a_file(tmp_path: Path) -> None:
    assert defaults(tmp_path, None) == GenerationDefaults(eos_token_ids=(0,))


def test_hunyuan_a13b(tmp_path: Path) -> None:
    values = {
        "eos_token_id": [127960, 127967], "pad_token_id": 127961, "do_sample": True, "top_k": 20, "top_p": 0.8,
        "temperature": 0.7, "repetition_penalty": 1.05, "max_new_tokens": 7, "transformers_version": "4.41.2",
    }  # fmt: skip
    assert defaults(tmp_path, values) == GenerationDefaults((127960, 127967, 0), 0.7, 0.8, 20, 0.0, 1.05)


def test_do_sample_false_is_greedy_and_absent_means_the_fields(tmp_path: Path) -> None:
    assert defaults(tmp_path, {"do_sample": False, "temperature": 0.6}) == GenerationDefaults((0,), temperature=0.0)
    assert defaults(tmp_path, {"temperature": 0.6}).temperature == 0.6
    assert defaults(tmp_path, {"eos_token_id": 0}) == GenerationDefaults((0,))


def test_whole_numbers_may_have_a_point(tmp_path: Path) -> None:
    assert defaults(tmp_path, {"top_k": 20.0, "eos_token_id": [0.0]}) == GenerationDefaults((0,), top_k=20)


def test_keys_without_effect_are_named(tmp_path: Path) -> None:
    values = {"do_sample": False, "top_p": 0.5, "max_new_tokens": 9, "no_repeat_ngram_size": 3, "suppress_tokens": [5]}
    defaults(tmp_path, values)
    spec = load_spec(checkpoints.shared("mixtral"))
    assert ignored_generation_keys(tmp_path, spec) == ["no_repeat_ngram_size", "suppress_tokens"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"temperature": -1}, "temperature = -1"),
        ({"top_p": 0}, "top_p = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"min_p": 2}, "min_p = 2"),
        ({"top_k": -2}, "top_k = -2"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"eos_token_id": "2"}, "eos_token_id = '2'"),
        ({"do_sample": "no"}, "do_sample = 'no'"),
        ([1], "JSON list"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, values: Any, words: str) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json") as caught:
        defaults(tmp_path, values)
    assert words in str(caught.value)

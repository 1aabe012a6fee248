"""Options: declared once, checked, merged from flags and YAML; frozen names."""

from dataclasses import fields
from pathlib import Path

import pytest

from cluster.config import ServeConfig, flag_name, merge, read_yaml
from experts.errors import UserError

FLAGS = (
    "attention-workers expert-workers colocate num-redundant-experts min-copies device exchange dtype max-model-len max-num-seqs "
    "max-num-batched-tokens kv-cache-memory-bytes max-queue-len served-model-name placement enable-eplb eplb-policy "
    "eplb-policy-timeout eplb-interval record-loads record-interval reasoning-parser chat-template grace-period host grpc-port "
    "http-port allowed-origins strict-fields ray-address"
).split()


def test_flags_are_frozen() -> None:
    assert [flag_name(f.name) for f in fields(ServeConfig)] == FLAGS


def test_flags_go_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: here\nattention-workers: 2\nmax-num-seqs: 5\nplacement: a.npz\n")
    values = read_yaml(path)
    assert values["model"] == "here"
    config = merge({"max_num_seqs": 7, "host": None}, values)
    assert (config.attention_workers, config.max_num_seqs, config.host) == (2, 7, "127.0.0.1")
    assert config.placement == Path("a.npz")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max-model-ln: 5", "max-model-len"),
        ("max-model-len: five", "a whole number"),
        ("colocate: 3", "true or false"),
        ("max-num-seqs: true", "a whole number"),
        ("dtype: float31", "did you mean float32"),
        ("grpc-port: 70000", "0 to 65535"),
        ("- a", "mapping"),
        ("a: [", "broken YAML"),
        ("model: 3", "a folder"),
        ("max-num-seqs: 3\nmax-num-seqs: 4", "key 'max-num-seqs' twice"),
        ("max-num-seqs: 3\nmax_num_seqs: 4", "'max-num-seqs' twice"),
        ("grace-period: soon", "a number"),
        ("grace-period: -1", "0 to 86400"),
    ],
)
def test_wrong_yaml_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"attention_workers": 2, "expert_workers": 0}, "--expert-workers"),
        ({"colocate": True, "expert_workers": 2}, "--expert-workers"),
        ({"attention_workers": 0}, "--attention-workers"),
        ({"grpc_port": 8000}, "--http-port"),
        ({"reasoning_parser": "qwen"}, "did you mean qwen3"),
    ],
)
def test_combinations_that_cannot_be(values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        merge(values, {})


def test_topology_of_the_defaults() -> None:
    assert (ServeConfig().experts, ServeConfig().expert_seats, ServeConfig().one_process) == (2, 2, False)
    together = ServeConfig(attention_workers=3, colocate=True)
    assert (together.experts, together.expert_seats, together.one_process) == (0, 3, False)
    assert ServeConfig(expert_workers=0).one_process


def test_balancing_that_can_not_take_effect_is_an_error() -> None:
    for flags in ({"expert_workers": 1}, {"expert_workers": 0}):
        with pytest.raises(UserError, match="--enable-eplb: found 1 rank with experts, expected at least 2"):
            merge({"enable_eplb": True, **flags}, {})
    assert merge({"enable_eplb": True, "expert_workers": 2}, {}).enable_eplb


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file_is_an_empty_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    assert read_yaml(path) == {}


def test_seconds_may_be_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    for text, seconds in (("grace-period: 7", 7), ("grace-period: 0.5", 0.5)):
        path.write_text(text)
        assert merge({}, read_yaml(path)).grace_period == seconds

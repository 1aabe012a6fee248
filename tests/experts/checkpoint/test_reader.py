"""CheckpointReader on real files: what it gives back, what it refuses, and how much memory it takes."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experts.checkpoint.reader import CheckpointReader
from experts.errors import UserError

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6).to(torch.bfloat16).view(2, 3) / 3,
    "fused": torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)).to(torch.float16),
    "empty": torch.empty(0, 7),
    "scalar": torch.tensor(2.5),
}


def write(folder: Path, shards: int = 1, config: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    if shards == 1:
        save_file(TENSORS, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        part = {name: TENSORS[name] for name in list(TENSORS)[i::shards]}
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refusal(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        CheckpointReader(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_tensors_come_back_in_any_dtype(tmp_path: Path, shards: int) -> None:
    reader = CheckpointReader(write(tmp_path / "c", shards))
    assert reader.names() == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert reader.shape(name) == tensor.shape
        for dtype in (torch.float32, torch.bfloat16, tensor.dtype):
            assert torch.equal(reader.tensor(name, tuple(tensor.shape), dtype), tensor.to(dtype))


def test_several_files_without_an_index(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", 2)
    (folder / "model.safetensors.index.json").unlink()
    assert CheckpointReader(folder).names() == sorted(TENSORS)


def test_one_expert_out_of_a_fused_tensor(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "c"))
    for e in range(4):
        assert torch.equal(reader.expert_slice("fused", e, (6, 5), torch.float32), TENSORS["fused"][e].float())
    with pytest.raises(UserError, match=r"fused with 4 experts, expected one with expert 4"):
        reader.expert_slice("fused", 4, (6, 5), torch.float32)
    with pytest.raises(UserError, match=r"fused of shape \[4, 6, 5\], expected \[4, 5, 6\]"):
        reader.expert_slice("fused", 0, (5, 6), torch.float32)
    with pytest.raises(UserError, match="scalar of shape"):
        reader.expert_slice("scalar", 0, (1,), torch.float32)


def test_read_many_fills_views_and_reports_progress(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "c", 3))
    room = torch.full((5, 4), -1.0)
    fused = torch.empty(6, 5)
    seen: list[int] = []
    reader.read_many([("a.weight", room[1:4], None), ("fused", fused, 2)], seen.append)
    assert torch.equal(room[1:4], TENSORS["a.weight"])
    assert room[0].tolist() == room[4].tolist() == [-1.0] * 4
    assert torch.equal(fused, TENSORS["fused"][2].float())
    assert sorted(seen) == [48, 120]
    with pytest.raises(UserError, match="no tensor nowhere"):
        reader.read_many([("a.weight", room[1:4], None), ("nowhere", fused, None)])


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "c", 2))
    with pytest.raises(UserError, match=r"found no tensor c\.weight \(the first is "):
        reader.shape("c.weight")
    with pytest.raises(
        UserError, match=r"model-0000\d-of-00002.*a\.weight of shape \[3, 4\], expected \[4, 3\] as config\.json says"
    ):
        reader.tensor("a.weight", (4, 3), torch.float32)


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(Path("tencent/Hunyuan-A13B-Instruct"), "no such folder", "hf download tencent/Hunyuan-A13B-Instruct")
    refusal(tmp_path / "nothing", "no such folder", str(tmp_path / "nothing"))
    (tmp_path / "file").write_text("x")
    refusal(tmp_path / "file", "a file")
    (tmp_path / "bare").mkdir()
    refusal(tmp_path / "bare", "no config.json")


def test_folders_without_readable_weights(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    refusal(folder, "no *.safetensors")
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    refusal(folder, "only .bin weights")
    write(folder, 1, '{"quantization_config": {"quant_method": "gptq", "bits": 4}}')
    refusal(folder, "quantised by gptq", "not supported yet", "config.json")
    for broken in ("{", "[]", "[" * 100_000, '"x"'):
        write(folder, 1, broken)
        refusal(folder, "config.json", "JSON")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a.weight": "gone.safetensors"}}, ("missing shard gone.safetensors",)),
        ({"weight_map": {"a.weight": "../model.safetensors"}}, ("'../model.safetensors'", "inside")),
        ({"weight_map": {"a.weight": "/etc/passwd"}}, ("'/etc/passwd'", "inside")),
        ({"weight_map": {"a.weight": "a\0b"}}, ("inside",)),
        ({"weight_map": {"a.weight": 3}}, ("weight_map",)),
        ({"weight_map": {}}, ("empty weight_map",)),
        ({}, ("weight_map",)),
    ],
)
def test_broken_indexes(tmp_path: Path, index: object, words: tuple[str, ...]) -> None:
    folder = write(tmp_path / "c", 2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(folder, *words)


def test_the_hub_caches_links_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    folder = repo / "snapshots" / "0123"
    folder.parent.mkdir()
    write(folder, 2)
    for path in folder.glob("*.safetensors"):
        blob = repo / "blobs" / path.name.replace(".", "")
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, folder))
    assert CheckpointReader(folder).names() == sorted(TENSORS)


def test_links_lead_where_the_user_has_them_lead(tmp_path: Path) -> None:
    """A link is the user's; only the names in an index are a stranger's."""
    folder = write(tmp_path / "c", 3)
    (tmp_path / "store").mkdir()
    for at, path in enumerate(sorted(folder.glob("*.safetensors"))):
        path.rename(tmp_path / "store" / f"{at:040x}")
        path.symlink_to(tmp_path / "store" / f"{at:040x}")
    assert CheckpointReader(folder).names() == sorted(TENSORS)


def test_an_index_may_name_what_nobody_needs(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", 2)
    index = folder / "model.safetensors.index.json"
    named = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**named, "rotary_emb.inv_freq": named["a.weight"]}}))
    reader = CheckpointReader(folder)
    assert reader.names() == sorted(TENSORS)
    with pytest.raises(UserError, match=r"no tensor rotary_emb.inv_freq, expected the tensors that the index places"):
        reader.shape("rotary_emb.inv_freq")


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_one_file_goes_before_an_index(tmp_path: Path, shards: str) -> None:
    folder = write(tmp_path / "c", 2)
    if shards == "gone":
        for path in folder.glob("model-*.safetensors"):
            path.unlink()
    save_file({"a.weight": torch.zeros(3, 4)}, folder / "model.safetensors")
    reader = CheckpointReader(folder)
    assert reader.names() == ["a.weight"]
    assert reader.note == "model.safetensors is read, model.safetensors.index.json is not"
    assert CheckpointReader(write(tmp_path / "d")).note == ""


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("layers.0.x.weight", "model.layers.0.x.weight"),
        ("norm.weight", "model.norm.weight"),
        ("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
        ("layers.0.mlp.experts.gate_up_proj", "model.layers.0.block_sparse_moe.experts.gate_up_proj"),
    ],
)
def test_other_spellings_of_a_name(tmp_path: Path, stored: str, asked: str) -> None:
    folder = write(tmp_path / "c")
    save_file({stored: torch.arange(6.0).view(2, 3)}, folder / "model.safetensors")
    reader = CheckpointReader(folder)
    assert reader.has(asked)
    assert reader.shape(asked) == (2, 3)
    assert reader.dtype(asked) == torch.float32
    assert reader.tensor(asked, (2, 3), torch.float32).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert reader.expert_slice(asked, 1, (3,), torch.float32).tolist() == [3, 4, 5]
    save_file({stored: torch.zeros(1), asked: torch.ones(1)}, folder / "model.safetensors")
    assert CheckpointReader(folder).tensor(asked, (1,), torch.float32).item() == 1, "its own name goes first"


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 1000\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, ("LoRA adapter", "merge")),
        ({"config.json": "{}", "adapter_config.json": "{}", "model.safetensors": "x"}, ("LoRA adapter", "merge")),
        ({"model.Q4_K_M.gguf": "GGUF"}, ("GGUF", "safetensors")),
        ({"config.json": "{}", "model.Q4_K_M.gguf": "GGUF"}, ("GGUF", "safetensors")),
        ({"params.json": "{}", "consolidated.safetensors": "x"}, ("Mistral's own format (params.json)", "config.json")),
        ({"config.json": "{}", "consolidated.00.safetensors": "x"}, ("consolidated.00.safetensors, Mistral's",)),
        ({"config.json": "{}", "quantize_config.json": "{}"}, ("AutoGPTQ", "not supported yet")),
        ({"config.json": "{}", "hf_quant_config.json": "{}"}, ("modelopt", "not supported yet")),
        ({"config.json": '{"quantization_config": {"load_in_4bit": true}}'}, ("bitsandbytes",)),
        ({"config.json": '{"quantization_config": {"quant_algo": "NVFP4"}}'}, ("modelopt (NVFP4)",)),
        ({"config.json": '{"quantization": {"group_size": 64, "bits": 4}}'}, ("MLX",)),
        ({"config.json": '{"quantization_config": {"x": 1}}'}, ("an unnamed method",)),
        ({"config.json": POINTER}, ("config.json", "git-lfs pointer", "git lfs pull")),
        ({"config.json": "{}", "model.safetensors": POINTER}, ("model.safetensors", "git-lfs pointer")),
        ({"config.json": "{}", "model.safetensors.index.json": POINTER}, ("index.json", "git-lfs pointer")),
    ],
)  # fmt: skip
def test_other_formats_are_named_with_the_way_out(
    tmp_path: Path, files: dict[str, str], words: tuple[str, ...]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    refusal(tmp_path, *words)


def test_a_gguf_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refusal(tmp_path / "model.gguf", "a GGUF file", "a folder")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_names_of_a_training_wrapper(tmp_path: Path, prefix: str) -> None:
    folder = write(tmp_path / "c")
    save_file({f"{prefix}model.norm.weight": torch.zeros(2)}, folder / "model.safetensors")
    refusal(folder, f"tensor {prefix}model.norm.weight", f"without '{prefix}'")


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("0 bytes", "truncated")),
        (b"\x01\x02", ("2 bytes",)),
        (raw({}, length=1 << 62), ("header of 4611686018427387904 bytes",)),
        (raw({}, length=3), ("header of 3 bytes",)),
        (raw(b"{]"), ("no JSON",)),
        (raw(b"\xff\xfe\x00"), ("no JSON",)),
        (raw(b"[" * 100_000), ("no JSON",)),
        (raw(b'{"a": 1' + b"0" * 5000 + b"}"), ("no JSON",)),
        (raw([1]), ("JSON list",)),
        (raw({"x": 3}), ("broken entry", "'x'")),
        (raw({"x": {**ONE, "dtype": []}}, b"01234567"), ("broken entry",)),
        (raw({"x": {**ONE, "shape": [-2]}}, b"01234567"), ("broken entry",)),
        (raw({"x": {**ONE, "shape": [True]}}, b"01234567"), ("broken entry",)),
        (raw({"x": {**ONE, "data_offsets": [0]}}, b"01234567"), ("broken entry",)),
        (raw({"x": {**ONE, "data_offsets": [8, 0]}}, b"01234567"), ("-8 bytes for tensor 'x'",)),
        (raw({"x": {**ONE, "shape": [3]}}, b"01234567"), ("8 bytes for tensor 'x'", "F32 of shape [3]")),
        (raw({"x": {**ONE, "shape": [2**63, 2**63]}}, b"01234567"), ("8 bytes for tensor 'x'",)),
        (raw({"x": ONE}, b"0123"), ("truncated",)),
        (raw({"x": ONE}, b"012345678"), ("overwritten",)),
        (raw({"x": ONE, "y": ONE}, b"01234567"), ("tensor 'y' at byte",)),
        (raw({"x": {**ONE, "data_offsets": [8, 16]}}, b"0" * 16), ("tensor 'x' at byte",)),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    folder = write(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(content)
    refusal(folder, "model.safetensors", *words)


def test_unaligned_data_and_other_dtypes(tmp_path: Path) -> None:
    folder = write(tmp_path / "c")
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        "q": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [9, 12]},
        "new": {"dtype": "F4", "shape": [2], "data_offsets": [12, 13]},
    }
    (folder / "model.safetensors").write_bytes(raw(header, b"\0" + struct.pack("<2f", 1.5, -2.0) + b"\0" * 4))
    reader = CheckpointReader(folder)
    assert reader.tensor("x", (2,), torch.float32).tolist() == [1.5, -2.0]
    for name, dtype, size in (("odd", "U8", 1), ("q", "F8_E4M3", 3), ("new", "F4", 2)):
        with pytest.raises(UserError, match=f"tensor {name} of dtype {dtype}, expected F32, F16, BF16"):
            reader.tensor(name, (size,), torch.float32)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_corruption_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of the header flipped, the file cut or lengthened: a UserError, or tensors of the shapes it now says."""
    folder = write(tmp_path / "c")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path.write_bytes(bytes(content[:cut]) + data.draw(st.sampled_from([b"", b"\0", b"\0" * 64])))
    try:
        reader = CheckpointReader(folder)
    except UserError:
        return
    for name in reader.names():
        try:
            found = reader.tensor(name, reader.shape(name), torch.float32)
        except UserError as error:
            assert "dtype" in str(error)  # noqa: PT017 - either outcome is right
            continue
        assert found.shape == reader.shape(name)


MEMORY_PROBE = """
import sys, torch
from pathlib import Path
from experts.checkpoint.reader import CheckpointReader

def own():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return sum(int(fields[key].split()[0]) for key in ("RssAnon", "RssShmem"))

def peak(folder, dtype):
    reader = CheckpointReader(folder)
    base = own()
    room = torch.empty(8, 1024, 1024, dtype=dtype)
    highest = 0
    def watch(_):
        nonlocal highest
        highest = max(highest, own())
    reader.read_many([("fused", room[i], 3 * i) for i in range(8)], watch)
    return (highest - base) * 1024 / room.nbytes

warm = torch.ones(64, 64).to(torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
print(peak(sys.argv[1], torch.bfloat16), peak(sys.argv[1], torch.float32))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_destinations(tmp_path: Path) -> None:
    folder = write(tmp_path / "c")
    save_file({"fused": torch.ones(24, 1024, 1024, dtype=torch.bfloat16)}, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(folder)], check=True, capture_output=True, text=True, timeout=120
    )
    same, converted = map(float, done.stdout.split())
    assert same < 1.15  # of 16 MiB: what three times as much file costs this process beyond its slots
    assert converted < 1.15

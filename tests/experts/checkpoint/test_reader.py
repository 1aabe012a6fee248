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
    with pytest.raises(UserError, match=r"found no tensor c\.weight"):
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
        ({"weight_map": {"a.weight": "link.safetensors"}}, ("a link to", "inside")),
        ({"weight_map": {"other": "model.safetensors"}}, ("no tensor other", "index")),
        ({"weight_map": {"a.weight": 3}}, ("weight_map",)),
        ({"weight_map": {}}, ("empty weight_map",)),
        ({}, ("weight_map",)),
    ],
)
def test_broken_indexes(tmp_path: Path, index: object, words: tuple[str, ...]) -> None:
    write(tmp_path / "outside")
    folder = write(tmp_path / "c")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside" / "model.safetensors")
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

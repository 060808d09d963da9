"""Reading files: every container and wrapper in any stack, and every bad file refused in one clear line."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from matchrt.errors import WeightsError
from matchrt.weights.readers import Checkpoint, read_checkpoint

Make = Callable[[Path], Any]


def tensors() -> dict[str, torch.Tensor]:
    return {"encoder.w": torch.arange(6.0).reshape(2, 3), "decoder.b": torch.tensor([1.5]).half(), "n": torch.tensor(7)}


def assert_holds(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)


def save_safetensors(content: dict[str, torch.Tensor], path: Path) -> None:
    save_file(content, path, metadata={"origin": "test"})


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("save", "container"), [(save_safetensors, "safetensors"), (save_zip, "torch-zip"), (save_legacy, "torch-legacy")]
)
def test_containers_are_told_by_content_not_suffix(
    tmp_path: Path, save: Callable[[dict[str, torch.Tensor], Path], None], container: str
) -> None:
    path = tmp_path / "weights.onnx"
    save(tensors(), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == container
    assert checkpoint.wrappers == ()
    assert checkpoint.size_bytes == path.stat().st_size
    assert_holds(checkpoint, tensors())


def test_sha256_is_the_whole_files(tmp_path: Path) -> None:
    import hashlib

    torch.save(tensors(), tmp_path / "w")
    assert read_checkpoint(tmp_path / "w").sha256 == hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()


def test_compressed_zip_members_are_read_right(tmp_path: Path) -> None:
    """Memory-mapping a compressed member would read its compressed bytes as weights."""
    torch.save({"w": torch.zeros(4000)}, tmp_path / "stored")
    with zipfile.ZipFile(tmp_path / "stored") as old, zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "w").stat().st_size < 10_000
    assert_holds(read_checkpoint(tmp_path / "w"), {"w": torch.zeros(4000)})


def test_a_flipped_bit_in_a_mapped_tensor_is_noticed(tmp_path: Path) -> None:
    torch.save({"w": torch.full((1000,), 3.0)}, tmp_path / "w")
    content = bytearray((tmp_path / "w").read_bytes())
    content[content.index(struct.pack("<f", 3.0) * 9) + 400] ^= 1
    (tmp_path / "x").write_bytes(content)
    assert torch.load(tmp_path / "x", weights_only=True, mmap=True)["w"].unique().numel() == 2  # torch does not notice
    with pytest.raises(WeightsError, match=r"is damaged: its part .*/data/0 does not have the checksum"):
        read_checkpoint(tmp_path / "x")


PREFIXES = ["module.", "_orig_mod.", "model.", "matcher.", "matcher.model."]
CONTAINERS = ["state_dict", "model", "model_state_dict", "net", "network", "weights"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=4),
    legacy=st.booleans(),
)
def test_wrappers_and_prefixes_in_any_stack(
    tmp_path: Path, containers: list[str], prefixes: list[str], legacy: bool
) -> None:
    prefix = "".join(prefixes)
    content: Any = OrderedDict((prefix + name, tensor) for name, tensor in tensors().items())
    for container in reversed(containers):
        content = {"epoch": 3, container: content, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    (save_legacy if legacy else save_zip)(content, tmp_path / "w")
    checkpoint = read_checkpoint(tmp_path / "w")
    assert_holds(checkpoint, tensors())
    assert "".join(checkpoint.wrappers[len(containers) :]) == prefix
    assert list(checkpoint.wrappers[: len(containers)]) == containers
    assert checkpoint.original_names["n"] == prefix + "n"
    assert len(checkpoint.notes) == 2 * len(containers)


def test_safetensors_prefixes_are_stripped_too(tmp_path: Path) -> None:
    save_file({f"module.matcher.{name}": tensor for name, tensor in tensors().items()}, tmp_path / "w")
    checkpoint = read_checkpoint(tmp_path / "w")
    assert_holds(checkpoint, tensors())
    assert checkpoint.wrappers == ("module.", "matcher.")


def test_prefixes_that_tell_parts_apart_stay(tmp_path: Path) -> None:
    content = {"matcher.a": torch.ones(1), "extractor.b": torch.ones(2)}
    torch.save({"state_dict": content}, tmp_path / "w")
    assert_holds(read_checkpoint(tmp_path / "w"), content)
    torch.save({"model.a": torch.ones(1), "modelled.b": torch.ones(2)}, tmp_path / "x")
    assert set(read_checkpoint(tmp_path / "x").tensors) == {"model.a", "modelled.b"}
    torch.save({"keypoint_detector.a": torch.ones(1)}, tmp_path / "y")
    assert set(read_checkpoint(tmp_path / "y").tensors) == {"keypoint_detector.a"}


def test_dictionaries_of_dictionaries_become_prefixes(tmp_path: Path) -> None:
    """DISK's published file is {"extractor": {...}}."""
    torch.save({"extractor": {"unet.w": torch.ones(2)}, "step": 9}, tmp_path / "w")
    checkpoint = read_checkpoint(tmp_path / "w")
    assert_holds(checkpoint, {"extractor.unet.w": torch.ones(2)})
    assert checkpoint.notes == ("step: int, not read",)


def test_parameters_are_read_without_autograd(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w")
    assert not read_checkpoint(tmp_path / "w").tensors["w"].requires_grad


class Attack:
    """Unpickling this would create a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def raw_pickle(protocol: int) -> Callable[[object, Path], None]:
    def save(content: object, path: Path) -> None:
        path.write_bytes(pickle.dumps(content, protocol=protocol))

    return save


@pytest.mark.parametrize("save", [save_zip, save_legacy, raw_pickle(2), raw_pickle(4), raw_pickle(5)])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    tmp_path: Path, save: Callable[[object, Path], None]
) -> None:
    proof = tmp_path / "ran"
    save(
        {"state_dict": {"w": torch.ones(2) if save in (save_zip, save_legacy) else 1, "x": Attack(proof)}},
        tmp_path / "w.pth",
    )
    with pytest.raises(WeightsError, match=r"refused and nothing in it was run: .*(posix|nt)\.system") as error:
        read_checkpoint(tmp_path / "w.pth")
    assert not proof.exists()
    assert "\n" not in error.value.message
    assert error.value.hint is not None
    assert "safetensors" in error.value.hint
    # The attack is real: an unguarded load of the same content runs it.
    pickle.loads(pickle.dumps(Attack(proof)))
    assert proof.exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2), "extra": Path("x")}, tmp_path / "w")
    with pytest.raises(WeightsError, match="refused and nothing in it was run"):
        read_checkpoint(tmp_path / "w")


def safetensors_bytes(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def deflated(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(content: object, cut: int | None = None, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()[:cut]


def array_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


ONE = torch.ones(1)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"hello there\nsecond", r"is a text file of 18 bytes, which begins 'hello there'"),
    "utf-8 text": ("größer\n".encode() * 300, "is a text file"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body>", "is a saved web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "is a git-LFS pointer"),
    "onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0:\x10", "is an ONNX model, not a checkpoint"),
    "gzip": (gzip.compress(b"x" * 100), "is gzip-compressed: unpack it first"),
    "npy": (array_file(), "is a NumPy array file"),
    "binary": (bytes(range(128, 256)), r"is no known weights format \(128 bytes, first bytes 80 81"),
    "plain zip": (zipped("readme.txt"), r"without a PyTorch checkpoint \(it holds readme.txt\)"),
    "torchscript": (zipped("a/constants.pkl"), "is a TorchScript program"),
    "truncated zip": (saved({"w": torch.ones(1000)}, cut=3000), r"truncated or damaged: .*the file has 3000 bytes"),
    "zip bomb": (deflated(bytes(30_000_000)), r"is refused: its 1 parts declare 30000000 bytes, the file has \d+"),
    "truncated legacy": (saved({"w": torch.ones(1000)}, cut=2000, legacy=True), r"truncated or damaged \(2000 bytes\)"),
    "cut legacy": (saved({"w": torch.ones(1000)}, cut=40, legacy=True), r"truncated or damaged \(40 bytes\)"),
    "no tensors": (saved({"epoch": 3, "state_dict": {}}), r"holds no tensors \(it has epoch: int, not read"),
    "a tensor without a name": (saved(torch.ones(2)), "it holds a tensor, not tensors by name"),
    "a list": (saved([torch.ones(2)]), "it holds list of 1 entries with 1 tensors, not tensors by name"),
    "ambiguous": (saved({"model": {"a": ONE}, "state_dict": {"a": ONE}}), "both 'state_dict' and 'model'"),
    "joined names": (saved({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}), "two tensors are both called 'a.b'"),
    "sparse": (saved({"w": torch.eye(3).to_sparse()}), "'w' is not a dense tensor"),
    "meta": (saved({"w": torch.ones(3, device="meta")}), "'w' has no data in the file"),
    "expanded": (saved({"w": torch.zeros(1).expand(10**12)}), "declares 4000000000000 bytes .*the file stores 4"),
    "st truncated": (safetensors_bytes({"a": entry(0, 400)}, bytes(100)), r"declares \d+ bytes, the file has \d+"),
    "st cut header": (struct.pack("<Q", 5000) + b'{"a":', r"its header alone needs 5008 bytes, the file has 13"),
    "st huge header": (struct.pack("<Q", 1 << 60) + b"{}", "declares a header of 1152921504606846976 bytes"),
    "st overlap": (safetensors_bytes({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps 'a'"),
    "st hole": (safetensors_bytes({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)), "4 bytes before 'b' belong"),
    "st trailing": (safetensors_bytes({"a": entry(0, 8)}, bytes(20)), "12 bytes after its last tensor"),
    "st lying shape": (safetensors_bytes({"a": entry(0, 8, [1 << 40])}, bytes(8)), r"'a' is F32 .* span 8"),
    "st negative": (safetensors_bytes({"a": entry(0, 8, [-1, -2])}, bytes(8)), "negative or fractional"),
    "st dtype": (safetensors_bytes({"a": entry(0, 8, dtype="F31")}, bytes(8)), "unknown dtype 'F31'"),
    "st json": (safetensors_bytes(b'{"a": [}', b""), "broken safetensors header"),
    "st twice": (safetensors_bytes(b'{"a": 1, "a": 1}', b""), "'a' is there twice"),
    "st nested": (safetensors_bytes(b'{"a":' * 20_000, b""), "broken safetensors header"),
    "st none": (safetensors_bytes({"__metadata__": {"a": "b"}}, b""), "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as error:
        read_checkpoint(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["safetensors", "zip", "legacy"]))
def test_any_cut_or_flipped_byte_reads_or_is_a_weights_error(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    """No damage may surface as anything but `WeightsError`, and a cut file never reads as a smaller one."""
    path = tmp_path / "w"
    {"safetensors": save_safetensors, "zip": save_zip, "legacy": save_legacy}[kind](tensors(), path)  # type: ignore[operator]
    content = bytearray(path.read_bytes())
    cut = data.draw(st.booleans())
    position = data.draw(st.integers(0, len(content) - 1))
    if cut:
        del content[position:]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.unlink()  # a new inode: the old content may still be memory-mapped
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except WeightsError:
        return
    assert not cut or set(checkpoint.tensors) == set(tensors())
    if kind == "zip":  # the one format with checksums: no flipped bit may reach a tensor
        assert_holds(checkpoint, tensors())

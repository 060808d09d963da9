"""The torch backend is the network of the bundle's own checkpoint, and refuses any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import matchrt
from matchrt.backends import Session
from matchrt.backends.torch.arrays import TorchArray, as_tensor
from matchrt.backends.torch.backend import TorchBackend
from matchrt.backends.torch.engines import DeviceSession, TorchEngine
from matchrt.backends.torch.options import parse_options
from matchrt.bundle import read_bundle
from matchrt.errors import MatchrtError, UsageError, WeightsError
from matchrt.images.read import read_image
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.runtime.steps import run_steps
from matchrt.samples import sample_pairs
from matchrt.weights.hashing import file_sha256
from matchrt.weights.locate import find_weights


def _open(bundle: Path, precision: str = "fp32", **options: Any) -> matchrt.Matcher:
    return matchrt.load(bundle, backend="torch", precision=precision, options={"device": "cpu", **options})


def test_finds_the_matches_of_the_graphs(mini_bundle: Path) -> None:
    sample = sample_pairs()[0]
    with matchrt.load(mini_bundle) as engine, _open(mini_bundle) as reference:
        theirs, ours = (m(sample.image0, sample.image1) for m in (engine, reference))
    assert (ours.backend, ours.precision) == ("torch", "fp32")
    assert len(ours) > 20
    np.testing.assert_allclose(ours.keypoints0, theirs.keypoints0, atol=1e-3)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


@pytest.mark.parametrize(("precision", "half"), [("bf16", "autocast"), ("bf16", "network")])
def test_half_precisions_differ_a_little_and_keep_the_contract(mini_bundle: Path, precision: str, half: str) -> None:
    sample = sample_pairs()[0]
    with _open(mini_bundle) as exact, _open(mini_bundle, precision, half=half) as rounded:
        a, b = (m(sample.image0, sample.image1) for m in (exact, rounded))
    assert b.scores.dtype == np.float32
    assert abs(len(a) - len(b)) <= 3
    assert a.scores.mean() != b.scores.mean()
    assert abs(a.scores.mean() - b.scores.mean()) < 0.03


def _with_record(bundle: Path, copy: Path, **weights: object) -> Path:
    """A copy of `bundle` whose manifest says something else about its weights."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "bundle.json").read_text("utf-8"))
    manifest["weights"].update(weights)
    (copy / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    return copy


def test_random_weights_come_from_the_seed_alone(mini_bundle: Path, tmp_path: Path) -> None:
    states = []
    for number, seed in enumerate((7, 7, 8)):
        bundle = _with_record(mini_bundle, tmp_path / str(number), random_seed=seed, sources=[])
        engine = _open(bundle)._engines["matcher"]
        assert isinstance(engine, TorchEngine)
        assert engine.module is not None
        states.append(torch.cat([p.flatten() for p in engine.module.parameters()]))
        torch.manual_seed(number)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    with pytest.raises(WeightsError, match="random weights"):
        _open(tmp_path / "0", checkpoint=tmp_path / "any.ckpt")


@pytest.fixture(scope="module")
def own_file(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle that says it was made from a file of the user's, and that file: the shipped one with the last layer doubled."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("own")
    spec = get_plugins().matcher("superpoint-lightglue")
    tensors = load_file(str(find_weights(spec, spec.variant("mini"), {})[""]))
    name = max(n for n in tensors if "matchability" in n)
    tensors[name] = tensors[name] * 2
    checkpoint = folder / "own.safetensors"
    save_file(tensors, str(checkpoint))
    sources = [s.model_dump() for s in read_bundle(mini_bundle).manifest.weights.sources]
    for source in sources:
        if source["role"] == "main":
            size = checkpoint.stat().st_size
            source.update(filename=checkpoint.name, sha256=file_sha256(checkpoint), size=size)
    return _with_record(mini_bundle, folder / "b", sources=sources), checkpoint


def test_asks_for_the_file_that_was_converted(mini_bundle: Path, own_file: tuple[Path, Path]) -> None:
    bundle, checkpoint = own_file
    with pytest.raises(WeightsError, match=r"own\.safetensors.*sha256") as caught:
        _open(bundle)
    assert caught.value.hint is not None
    assert "--checkpoint FILE" in caught.value.hint
    sample = sample_pairs()[0]
    with _open(bundle, checkpoint=checkpoint) as own, _open(mini_bundle) as shipped:
        a, b = (m(sample.image0, sample.image1) for m in (own, shipped))
    assert abs(a.scores.mean() - b.scores.mean()) > 1e-3


def test_refuses_another_file(own_file: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, checkpoint = own_file
    other = tmp_path / checkpoint.name
    shutil.copy(checkpoint, other)
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    for given, message in ((other, "is not what the bundle was made from"), (tmp_path / "none", "is not there")):
        with pytest.raises(WeightsError, match=message):
            _open(bundle, checkpoint=given)
    with pytest.raises(WeightsError, match="no weights of role 'dinov2'"):
        _open(bundle, checkpoint=f"dinov2={checkpoint}")


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp64", {}, "precision: 'fp64' is not one of"),
        ("fp32", {"devise": "cpu"}, "no option 'devise'"),
        ("fp32", {"device": "tpu"}, "device: 'tpu'"),
        ("fp32", {"compile": "fast"}, "compile: 'fast'"),
        ("fp16", {"half": "some"}, "half: 'some'"),
        ("fp32", {"benchmark": "maybe"}, "not true or false"),
    ],
)
def test_refuses_unknown_options(mini_bundle: Path, precision: str, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        matchrt.load(mini_bundle, backend="torch", precision=precision, options=options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_says_that_there_is_no_gpu(mini_bundle: Path) -> None:
    with pytest.raises(MatchrtError, match="sees no CUDA device") as caught:
        matchrt.load(mini_bundle, backend="torch", options={"device": "cuda"})
    assert caught.value.exit_code == 4


def test_tensors_stay_on_the_device_between_networks(mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU as a stand-in for a GPU: what `DeviceSession` hands on is read in place by the next network."""
    bundle = read_bundle(mini_bundle)
    plugins = get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(bundle.manifest.matcher.id))
    engines = TorchBackend().open_bundle(bundle, hooks, "fp32", {"device": "cpu"})
    sessions: dict[str, Session] = {}
    for name, engine in engines.items():
        assert isinstance(engine, TorchEngine)
        sessions[name] = DeviceSession(engine)
    plain = {n: e.session() for n, e in engines.items()}
    copies: list[TorchArray] = []
    monkeypatch.setattr(TorchArray, "numpy", lambda self: (copies.append(self), self.tensor.numpy())[1])
    with matchrt.load(mini_bundle) as matcher:
        sample = sample_pairs()[0]
        tensors, _ = matcher.preprocess(read_image(sample.image0), read_image(sample.image1), matcher.settings)
    wanted = hooks.matcher.outputs
    found = run_steps(bundle.manifest, sessions, tensors, wanted)
    on_device = {id(a.tensor) for a in copies}
    made = {t for s in bundle.manifest.steps for t in s.outputs.values()}
    assert len(on_device) == len(made & set(wanted)) < len(made)
    expected = run_steps(bundle.manifest, plain, tensors, wanted)
    for name in wanted:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_takes_arrays_of_other_libraries_in_place() -> None:
    device = torch.device("cpu")
    tensor = torch.arange(6.0).reshape(2, 3)
    wrapped = TorchArray(tensor)
    assert (wrapped.shape, wrapped.dtype, wrapped.ndim) == ((2, 3), np.dtype(np.float32), 2)
    assert torch.from_dlpack(wrapped).data_ptr() == tensor.data_ptr()
    given: list[Callable[[], Any]] = [lambda: wrapped, lambda: tensor, lambda: tensor.numpy()]
    for make in given:
        assert as_tensor(make(), device).data_ptr() == tensor.data_ptr()


def test_roles_of_checkpoints() -> None:
    one = parse_options("fp32", {"checkpoint": ["a.ckpt", "dinov2=b.pth"]}).checkpoint
    assert one == {"": Path("a.ckpt"), "dinov2": Path("b.pth")}
    assert parse_options("fp32", {"checkpoint": {"main": "a.ckpt"}}).checkpoint == {"": Path("a.ckpt")}

"""Both networks as ONNX: the same numbers in onnxruntime, free shapes, no operator that a TensorRT engine lacks."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from matchrt.export.onnx_export import export_network
from matchrt.graph.passes import BUILT_IN, run_passes
from matchrt.model import ExampleInputs, NetworkSpec, Target
from matchrt.patches import Patch, apply_patches, decomposed_layer_norm, layer_norm_patches
from matchrt_lightglue.examples import ExampleSettings, example_inputs
from matchrt_lightglue.networks import LightGlue, SuperPoint
from matchrt_lightglue.patches import packed_attention
from matchrt_lightglue.spec import EXTRACTOR, MATCHER
from matchrt_lightglue.variants import VARIANTS

MakePair = Callable[..., tuple[Tensor, ...]]
FORBIDDEN = {"NonZero", "ScatterND", "ScatterElements", "If", "Loop", "Einsum", "IsNaN", "SplitToSequence", "Attention"}
MINI = replace(VARIANTS["mini"], n_layers=2)


@pytest.fixture(scope="module")
def mini_matcher(calibrate_matcher: Callable[[nn.Module], None]) -> LightGlue:
    network = LightGlue(input_dim=MINI.descriptor_dim, dim=MINI.dim, heads=MINI.heads, n_layers=MINI.n_layers).eval()
    calibrate_matcher(network)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def mini_extractor(extractor: Callable[..., SuperPoint]) -> SuperPoint:
    return extractor(
        channels=MINI.channels, head_dim=MINI.head_dim, descriptor_dim=MINI.descriptor_dim, max_keypoints=200
    )


def export(
    network: nn.Module, example: ExampleInputs, spec: NetworkSpec, *, opset: int, patches: Sequence[Patch] = ()
) -> onnx.ModelProto:
    with apply_patches(network, patches):
        model = run_passes(export_network(network, spec, example, Target(opset=opset)), BUILT_IN, spec.name)
    # An exporter may silently write another opset than the one that was asked for.
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    return model


def run(model: onnx.ModelProto, args: Sequence[Tensor]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, args, strict=True)}
    return session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})


def assert_same_matches(model: onnx.ModelProto, network: LightGlue, pair: Sequence[Tensor], least: int) -> None:
    with torch.inference_mode():
        expected = network(*pair)
    matches, scores = run(model, pair)
    assert (expected.scores0 > 0.1).sum() >= least
    assert matches.dtype == np.int32
    assert np.abs(scores - expected.scores0.numpy()).max() <= 1e-4
    accepted = expected.scores0.numpy() > 1e-3
    assert np.array_equal(matches[accepted], expected.matches0.numpy()[accepted])


def assert_same_keypoints(
    model: onnx.ModelProto, network: SuperPoint, image: Tensor, scale: float = 1.0, valid: tuple[int, int] | None = None
) -> None:
    batch, _, height, width = image.shape
    size = torch.tensor([valid or (height, width)] * batch, dtype=torch.int32)
    args = (image, torch.full((batch, 2), scale), size)
    with torch.inference_mode():
        expected = [tensor.numpy() for tensor in network(*args)]
    got = run(model, args)
    assert [g.dtype for g in got] == [np.float32, np.float32, np.float32, np.int32]
    assert np.array_equal(got[3], expected[3])
    assert np.abs(got[1] - expected[1]).max() <= 1e-5
    for b in range(batch):
        count = int(expected[3][b])
        ours, theirs = ({(x, y): i for i, (x, y) in enumerate(k[b][:count].tolist())} for k in (got[0], expected[0]))
        assert ours.keys() == theirs.keys()  # as sets: equal scores may come in another order
        order = [theirs[position] for position in ours]
        assert count == 0 or np.abs(got[2][b][:count] - expected[2][b][order]).max() <= 1e-4
        assert not got[0][b][count:].any()
        assert not got[2][b][count:].any()


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def assert_indices_stay_integers(model: onnx.ModelProto) -> None:
    """Only the stacked coordinates, which are small, become floats; never a flat index, which float16 cannot hold."""
    producer = {name: node for node in model.graph.node for name in node.output}
    chosen = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
    assert len(chosen) == 2, "blocks, then pixels"
    downstream, casts = set(chosen), []
    for node in model.graph.node:  # in topological order
        data = node.input[:1] if node.op_type.startswith("Gather") else node.input  # what is looked up, not where
        if downstream.isdisjoint(data):
            continue
        to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if to in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            casts.append(producer[node.input[0]].op_type)
        else:
            downstream |= set(node.output)
    assert casts == ["Concat"]


@pytest.mark.parametrize("opset", [16, pytest.param(18, marks=pytest.mark.slow), 20])
def test_extractor(mini_extractor: SuperPoint, photo: Callable[..., Tensor], opset: int) -> None:
    settings = ExampleSettings(max_keypoints=200)
    example = example_inputs("mini", settings)["extractor"]
    model = export(mini_extractor, example, EXTRACTOR, opset=opset)
    assert not FORBIDDEN & operators(model).keys()
    assert_indices_stay_integers(model)
    assert_same_keypoints(model, mini_extractor, photo("camera", 96, 128))
    assert_same_keypoints(model, mini_extractor, photo("coffee", 208, 136), scale=0.37, valid=(203, 131))
    assert_same_keypoints(model, mini_extractor, photo("coffee", 128, 160), valid=(117, 90))
    assert_same_keypoints(model, mini_extractor, photo("camera", 8, 16))  # fewer pixels than keypoints
    images = torch.cat([photo("camera", 64, 72), photo("rocket", 64, 72), torch.zeros(1, 1, 64, 72)])
    assert_same_keypoints(model, mini_extractor, images)


@pytest.mark.parametrize("opset", [16, pytest.param(18, marks=pytest.mark.slow), 20])
def test_matcher(mini_matcher: LightGlue, make_pair: MakePair, opset: int) -> None:
    fused = opset >= 17
    settings = ExampleSettings(keypoints_vary=True)
    example = example_inputs("mini", settings)["matcher"]
    patches = [packed_attention(), *layer_norm_patches(opset)]
    model = export(mini_matcher, example, MATCHER, opset=opset, patches=patches)
    found, layers = operators(model), MINI.n_layers
    assert not FORBIDDEN & found.keys()
    assert found["Softmax"] == 2 * layers  # both images in one product
    assert found["LayerNormalization"] == (2 * layers if fused else 0)
    assert found["ReduceMean"] == (0 if fused else 2 * 2 * layers)  # the mean is taken once
    assert found["Gelu"] == (2 * layers if opset >= 20 else 0)
    pair = list(make_pair(100, 100, dim=MINI.descriptor_dim))
    assert_same_matches(model, mini_matcher, pair, least=50)
    pair[2], pair[6] = torch.tensor([71], dtype=torch.int32), torch.tensor([90], dtype=torch.int32)
    assert_same_matches(model, mini_matcher, pair, least=30)
    pair[2] = torch.tensor([0], dtype=torch.int32)
    assert_same_matches(model, mini_matcher, pair, least=0)
    assert_same_matches(model, mini_matcher, make_pair(131, 131, batch=3, dim=MINI.descriptor_dim), least=200)
    assert_same_matches(model, mini_matcher, make_pair(1, 1, dim=MINI.descriptor_dim), least=0)


def test_matcher_with_two_free_counts(mini_matcher: LightGlue, make_pair: MakePair) -> None:
    settings = ExampleSettings(keypoints_vary=True, equal_counts=False)
    example = example_inputs("mini", settings)["matcher"]
    mini_matcher.equal_counts = False
    try:
        model = export(mini_matcher, example, MATCHER, opset=20, patches=[packed_attention()])
    finally:
        mini_matcher.equal_counts = True
    assert not FORBIDDEN & operators(model).keys()
    for counts in [(90, 140), (140, 90), (60, 60), (1, 30)]:
        pair = make_pair(*counts, batch=2, dim=MINI.descriptor_dim)
        assert_same_matches(model, mini_matcher, pair, least=0 if 1 in counts else 50)


@pytest.mark.rtx
@pytest.mark.parametrize("name", ["extractor", "matcher"])
def test_a_tensorrt_builder_accepts_the_graph(mini_extractor: SuperPoint, mini_matcher: LightGlue, name: str) -> None:
    import tensorrt_rtx as trt

    example = example_inputs("mini", ExampleSettings(max_keypoints=200, size=(96, 128), batch=1))[name]
    network = {"extractor": mini_extractor, "matcher": mini_matcher}[name]
    patches = [packed_attention(), decomposed_layer_norm()]
    spec = {"extractor": EXTRACTOR, "matcher": MATCHER}[name]
    model = export(network, example, spec, opset=16, patches=patches)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network()
    parser = trt.OnnxParser(definition, logger)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    engine = builder.build_serialized_network(definition, builder.create_builder_config())
    assert engine is not None
    assert engine.nbytes > 10_000
    names = [definition.get_output(i).name for i in range(definition.num_outputs)]
    assert names == [t.name for t in spec.outputs]


@pytest.mark.slow
def test_full_size(
    matcher: LightGlue,
    extractor: Callable[..., SuperPoint],
    make_pair: MakePair,
    photo: Callable[..., Tensor],
) -> None:
    examples = example_inputs("full", ExampleSettings(max_keypoints=512, keypoints_vary=True))
    model = export(matcher, examples["matcher"], MATCHER, opset=20, patches=[packed_attention()])
    assert not FORBIDDEN & operators(model).keys()
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert weights < sum(p.numel() for p in matcher.parameters()) - 500_000  # the unused heads are left out
    assert_same_matches(model, matcher, make_pair(500, 500), least=300)
    network = extractor(max_keypoints=512)
    model = export(network, examples["extractor"], EXTRACTOR, opset=20)
    assert_same_keypoints(model, network, photo("camera", 480, 512))
    assert_same_keypoints(model, network, photo("coffee", 336, 600), scale=0.5, valid=(333, 600))

"""Rules: names and layouts, checked against independent statements of each layout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchrt.errors import PluginError, WeightsError
from matchrt.weights.apply import Remapped, Source, remap
from matchrt.weights.report import Origin
from matchrt.weights.rules import (
    Backfill,
    Concatenate,
    Constant,
    Drop,
    Interleave,
    Permute,
    Refuse,
    Rename,
    Reshape,
    Rule,
    Same,
    Split,
    When,
    block_chunks,
)


def apply(tensors: dict[str, torch.Tensor], rules: Sequence[Rule], **others: dict[str, torch.Tensor]) -> Remapped:
    sources: dict[str, Source] = {"checkpoint": ("file.pth", tensors, {})}
    sources.update({name: (f"{name}.pth", content, {}) for name, content in others.items()})
    return remap(sources, rules)


def names(tensors: Sequence[str], rules: Sequence[Rule]) -> list[str]:
    return list(apply({name: torch.zeros(1) for name in tensors}, rules).tensors)


def test_renames_apply_in_order_and_see_current_names() -> None:
    rules = [Rename.exact("a", "b"), Rename.prefix("b", "x.b"), Rename.pattern(r"x\.(?P<n>\w+)", "{n}.y")]
    assert names(["a", "c"], rules) == ["b.y", "c"]


def test_exact_names_are_literal() -> None:
    assert names(["a.b", "aXb", "{x}"], [Rename.exact("a.b", "{q}"), Rename.exact("{x}", "y")]) == ["{q}", "aXb", "y"]


def test_prefix_may_be_added_and_removed() -> None:
    assert names(["m.a", "b"], [Rename.prefix("m.", ""), Rename.prefix("", "net.")]) == ["net.a", "net.b"]


def test_patterns_match_whole_keys_only() -> None:
    assert names(["xconvx", "conv"], [Drop("conv", "unused")]) == ["xconvx"]


@pytest.mark.parametrize(
    "rules",
    [
        [Rename.exact("a", "b")],
        [Rename.pattern(r"[ab]", "c")],
        [Concatenate(("a", "c"), "b")],
        [Split("a", ("b", "d"))],
    ],
)
def test_a_collision_names_both_keys(rules: list[Rule]) -> None:
    tensors = {name: torch.zeros(2) for name in "abc"}
    with pytest.raises(WeightsError, match=r"two keys end up as '\w'.*'[ab]'.*'[bac]'") as error:
        apply(tensors, rules)
    assert "file.pth" in error.value.message


def test_a_swap_is_not_a_collision() -> None:
    rules = [Rename.pattern(r"(?P<x>[ab])\.w", "{x}.v"), Rename.exact("a.v", "c"), Rename.exact("b.v", "a.v")]
    assert names(["a.w", "b.w"], rules) == ["c", "a.v"]


def test_lightglue_qkv_rows_are_head_dim_part() -> None:
    """transformers splits cvg's Wqkv as `Wqkv.reshape(4, 64, 3, ...)[:, :, c]`; joining must give Wqkv back."""
    wqkv = {"weight": torch.randn(768, 256), "bias": torch.randn(768)}
    tensors = {}
    for part, column in (("q", 0), ("k", 1), ("v", 2)):
        for kind, value in wqkv.items():
            cut = value.reshape(4, 64, 3, *value.shape[1:])[:, :, column]
            tensors[f"layers.3.self_attention.{part}_proj.{kind}"] = cut.reshape(256, *value.shape[1:])
    sources = tuple(rf"layers\.(?P<i>\d+)\.self_attention\.{p}_proj\.(?P<kind>weight|bias)" for p in "qkv")
    result = apply(tensors, [Concatenate(sources, "self_attn.{i}.Wqkv.{kind}", layout=Interleave(heads=4))])
    assert set(result.tensors) == {"self_attn.3.Wqkv.weight", "self_attn.3.Wqkv.bias"}
    assert torch.equal(result.tensors["self_attn.3.Wqkv.weight"], wqkv["weight"])
    assert torch.equal(result.tensors["self_attn.3.Wqkv.bias"], wqkv["bias"])
    assert [o.key for o in result.origins["self_attn.3.Wqkv.bias"]] == [
        f"layers.3.self_attention.{p}_proj.bias" for p in "qkv"
    ]


ORDERS = ("head dim part", "head part dim", "part head dim", "part dim head", "dim head part", "dim part head")


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 4),
    dim=st.integers(1, 4),
    count=st.integers(2, 4),
    rest=st.lists(st.integers(1, 3), max_size=2),
    axis=st.integers(0, 2),
    order=st.sampled_from(ORDERS),
)
def test_interleave_puts_every_row_where_its_words_say(
    heads: int, dim: int, count: int, rest: list[int], axis: int, order: str
) -> None:
    axis = min(axis, len(rest))
    shape = [*rest[:axis], heads * dim, *rest[axis:]]
    parts = [torch.randn(shape) for _ in range(count)]
    layout = Interleave(heads, order)
    tensors = {f"p{i}": part for i, part in enumerate(parts)}
    keys = tuple(tensors)
    joined = apply(tensors, [Concatenate(keys, "all", axis=axis, layout=layout)]).tensors["all"]
    sizes = {"head": heads, "dim": dim, "part": count}
    for h in range(heads):
        for d in range(dim):
            for p in range(count):
                row = 0
                for word, index in sorted(
                    zip(("head", "dim", "part"), (h, d, p), strict=True), key=lambda w: order.split().index(w[0])
                ):
                    row = row * sizes[word] + index
                assert torch.equal(joined.select(axis, row), parts[p].select(axis, h * dim + d))
    back = apply({"all": joined}, [Split("all", keys, axis=axis, layout=layout)])
    assert all(torch.equal(back.tensors[f"p{i}"], part) for i, part in enumerate(parts))


def test_plain_concatenation_and_split_by_sizes() -> None:
    a, b = torch.randn(2, 3), torch.randn(4, 3)
    joined = apply({"b": b, "a": a}, [Concatenate(("a", "b"), "ab")])
    assert torch.equal(joined.tensors["ab"], torch.cat([a, b]))
    parts = apply(dict(joined.tensors), [Split("ab", ("x", "y"), sizes=(2, 4))]).tensors
    assert torch.equal(parts["x"], a)
    assert torch.equal(parts["y"], b)


@pytest.mark.parametrize(
    ("tensors", "rule", "words"),
    [
        ({"q": (4, 2), "k": (4, 2)}, Concatenate(("q", "k", "v"), "qkv"), "nothing for 'v'"),
        ({"q": (4, 2), "k": (4, 3)}, Concatenate(("q", "k"), "qk"), "shapes differ"),
        ({"q": (4,), "k": (2,)}, Concatenate(("q", "k"), "qk", layout=Interleave(2)), "same number of rows"),
        ({"q": (3,), "k": (3,)}, Concatenate(("q", "k"), "qk", layout=Interleave(2)), "3 rows do not divide"),
        ({"a": (5,)}, Split("a", ("x", "y")), "5 rows"),
        ({"a": (5,)}, Split("a", ("x", "y"), sizes=(2, 2)), "add up to 4"),
        ({"a": (5,)}, Split("a", ("x", "y"), axis=1), "no axis 1"),
        ({"a": (5,)}, Reshape("a", (2, -1)), "cannot be reshaped"),
        ({"a": (5,)}, Permute("a", (1, 0)), "1 axes"),
        ({"a": (5,)}, Rename.pattern("a(?P<x>.*)", "{x}"), "empty name"),
    ],
)
def test_rules_that_do_not_apply_say_why(tensors: dict[str, tuple[int, ...]], rule: Rule, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        apply({name: torch.zeros(shape) for name, shape in tensors.items()}, [rule])


def test_same_collapses_equal_tensors_and_refuses_one_flipped_bit() -> None:
    rule = Same((r"(?P<i>\d)\.q_proj", r"(?P<i>\d)\.k_proj"), "{i}.to_qk")
    weight = torch.randn(4, 4)
    result = apply({"0.q_proj": weight, "0.k_proj": weight.clone()}, [rule])
    assert torch.equal(result.tensors["0.to_qk"], weight)
    assert len(result.origins["0.to_qk"]) == 2
    other = weight.clone()
    other.view(torch.int32)[3, 3] ^= 1
    with pytest.raises(WeightsError, match=r"'0.q_proj' and '0.k_proj' must be the same tensor"):
        apply({"0.q_proj": weight, "0.k_proj": other}, [rule])
    with pytest.raises(WeightsError, match="must be the same"):
        apply({"0.q_proj": torch.zeros(2), "0.k_proj": -torch.zeros(2)}, [rule])


def test_constant_is_checked_then_dropped_with_its_reason() -> None:
    rule = Constant("confidence_thresholds", (0.9, 0.8641), "computed by the network", tolerance=1e-4)
    result = apply({"confidence_thresholds": torch.tensor([0.9, 0.86408])}, [rule])
    assert not result.tensors
    assert [(d.name, d.reason) for d in result.dropped] == [("confidence_thresholds", "computed by the network")]
    with pytest.raises(WeightsError, match=r"\[0.9, 0.5\], which differs"):
        apply({"confidence_thresholds": torch.tensor([0.9, 0.5])}, [rule])
    with pytest.raises(WeightsError, match="differs"):
        apply({"confidence_thresholds": torch.tensor([0.9, float("nan")])}, [rule])
    with pytest.raises(WeightsError, match="has 1 values"):
        apply({"confidence_thresholds": torch.tensor([0.9])}, [rule])


def test_block_chunks_keep_the_global_index() -> None:
    """A depth-4, two-chunk DINOv2 names its third block `blocks.1.2` (the second number is the block)."""
    chunked = [f"dino.blocks.{i // 2}.{i}.norm1.weight" for i in range(4)] + ["dino.cls_token", "x.hidden_blocks.0.1.w"]
    flat = [f"dino.blocks.{i}.norm1.weight" for i in range(4)] + ["dino.cls_token", "x.hidden_blocks.0.1.w"]
    assert names(chunked, [block_chunks("dino.")]) == flat
    assert names(flat, [block_chunks("dino.")]) == flat


def test_block_chunks_refuse_local_indices() -> None:
    with pytest.raises(WeightsError, match=r"blocks.0.0.w.*blocks.1.0.w"):
        names(["blocks.0.0.w", "blocks.1.0.w"], [block_chunks("")])


def test_when_chooses_one_branch() -> None:
    rule = When(r"self_attn\..*", (Rename.prefix("self_attn.", "new."),), otherwise=(Rename.exact("b", "c"),))
    assert names(["self_attn.0", "b"], [rule]) == ["new.0", "b"]
    assert names(["b"], [rule]) == ["c"]


def test_backfill_adds_what_is_lacking_and_reports_the_rest() -> None:
    rule = Backfill(r"dino\..*", "dinov2", (Drop("mask_token", "never used"), Rename.prefix("", "dino.")))
    tensors = {"head": torch.zeros(1), "dino.norm": torch.ones(1)}
    second = {"cls": torch.ones(2), "norm": torch.zeros(1), "mask_token": torch.zeros(1)}
    result = apply(tensors, [rule], dinov2=second)
    assert list(result.tensors) == ["head", "dino.norm", "dino.cls"]
    assert torch.equal(result.tensors["dino.norm"], torch.ones(1))
    assert result.origins["dino.cls"] == (Origin("dinov2", "cls"),)
    assert {d.origins[0].key: d.reason for d in result.dropped} == {
        "mask_token": "never used",
        "norm": "the checkpoint has its own",
    }
    outside = apply(tensors, [Backfill(r"dino\..*", "dinov2", ())], dinov2={"cls": torch.ones(1)}).outside
    assert list(outside.values()) == [(Origin("dinov2", "cls"),)]


def test_backfill_without_its_file_is_noted_and_a_needless_file_refused() -> None:
    result = apply({"a": torch.zeros(1)}, [Backfill("dino.*", "dinov2")])
    assert result.absent == (("dinov2", "dino.*"),)
    with pytest.raises(WeightsError, match=r"timm.pth was given as 'timm', and no rule") as error:
        apply({"a": torch.zeros(1)}, [Backfill("dino.*", "dinov2")], timm={"b": torch.zeros(1)})
    assert error.value.hint is not None
    assert "dinov2" in error.value.hint


def test_reshape_and_permute_move_values_as_torch_does() -> None:
    value = torch.randn(2, 3, 4)
    result = apply({"a": value}, [Permute("a", (2, 0, 1)), Reshape("a", (4, -1))])
    assert torch.equal(result.tensors["a"], value.permute(2, 0, 1).reshape(4, 6))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Rename.pattern("(", "x"), "not a regular expression"),
        (lambda: Rename.pattern("(?P<a>.)", "{b}"), "uses b"),
        (lambda: Rename.pattern("(?P<a>.)", "{0}"), "not plain names"),
        (lambda: Rename.pattern("(?P<a>.)", "{a"), "malformed"),
        (lambda: Drop("x", " "), "reason is required"),
        (lambda: Interleave(0), "at least 1"),
        (lambda: Interleave(2, "head dim"), "not a permutation"),
        (lambda: Concatenate(("(?P<a>.)", "x"), "y"), "same named groups"),
        (lambda: Concatenate(("a",), "y"), "at least two"),
        (lambda: Split("x", ("a", "b"), sizes=(1,)), "1 sizes for 2 targets"),
        (lambda: Split("x", ("a", "b"), sizes=(1, 1), layout=Interleave(1)), "not both"),
        (lambda: Reshape("x", (-1, -1)), "at most one -1"),
        (lambda: Permute("x", (0, 2)), "not a permutation"),
        (lambda: Backfill("x", "s", (Backfill("x", "t"),)), "cannot be back-filled"),
        (lambda: When("x", [Drop("a", "b")]), "must be a tuple"),
    ],
)
def test_impossible_rules_are_refused_when_built(build: object, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        build()  # type: ignore[operator]


def test_rules_report_headers_and_fetch_load_without_torch() -> None:
    modules = (
        "rules",
        "report",
        "names",
        "safetensors_header",
        "containers",
        "pickles",
        "hashing",
        "fetch",
        "describe",
    )
    code = "import sys\n" + "".join(f"import matchrt.weights.{m}\n" for m in modules)
    heavy = ("torch", "onnx", "onnxruntime", "cv2", "tensorrt", "numpy", "safetensors")
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_refused_file_is_named_with_the_key_that_gives_it_away() -> None:
    rule = Refuse(r"register_.*", "is a ViT with registers", "give the plain one")
    with pytest.raises(WeightsError) as error:
        apply({"a": torch.zeros(1), "register_tokens": torch.zeros(4)}, [rule])
    assert error.value.message == "file.pth is a ViT with registers ('register_tokens')"
    assert error.value.hint == "give the plain one"
    assert set(apply({"a": torch.zeros(1)}, [rule]).tensors) == {"a"}
    with pytest.raises(WeightsError, match=r"second\.pth is"):
        apply({"a": torch.zeros(1)}, [Backfill("b", "second", (rule,))], second={"register_tokens": torch.zeros(4)})
    with pytest.raises(PluginError, match="reason"):
        Refuse("x", " ", "")

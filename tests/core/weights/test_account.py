"""The account: every key and parameter in exactly one class, and nothing loaded unless all is accounted for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from matchrt.errors import WeightsError
from matchrt.weights.account import account, load_into, network_state
from matchrt.weights.apply import Remapped, remap
from matchrt.weights.report import KEY_CLASSES, PARAMETER_CLASSES, KeyEntry, ParameterEntry, WeightReport
from matchrt.weights.rules import Backfill, Concatenate, Drop, Rename, Rule, Split


@dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    dtype: str = "float32"


def remapped(
    tensors: dict[str, torch.Tensor], rules: Sequence[Rule] = (), **others: dict[str, torch.Tensor]
) -> Remapped:
    return remap({"checkpoint": ("file.pth", tensors, {}), **{k: (k, v, {}) for k, v in others.items()}}, rules)


def key_kinds(report: WeightReport) -> dict[str, str]:
    return {entry.origin.key: entry.kind for entry in report.keys}


def parameter_kinds(report: WeightReport) -> dict[str, str]:
    return {entry.name: entry.kind for entry in report.parameters}


def test_every_class() -> None:
    tensors = {
        "a": torch.ones(2),
        "old": torch.ones(2),
        "bad": torch.ones(3),
        "extra": torch.ones(1),
        "count": torch.tensor(3),
    }
    rules = [
        Rename.exact("old", "new"),
        Drop("count", "a training counter"),
        Backfill("dino.*", "dinov2", (Rename.prefix("", "dino."),)),
    ]
    network = {n: Spec((2,)) for n in ("a", "new", "bad", "dino.x", "lost", "optional.y")}
    report = account(remapped(tensors, rules, dinov2={"x": torch.ones(2)}), network, ["optional.*"])
    assert key_kinds(report) == {
        "a": "loaded", "old": "loaded", "bad": "misshapen", "extra": "unexpected", "count": "dropped",
        "x": "backfilled",
    }  # fmt: skip
    assert parameter_kinds(report) == {
        "a": "loaded", "new": "loaded", "bad": "misshapen", "dino.x": "backfilled", "lost": "missing",
        "optional.y": "allowed_missing",
    }  # fmt: skip
    assert report.counts() == {
        "loaded": 2, "backfilled": 1, "dropped": 1, "missing": 1, "unexpected": 1, "misshapen": 1, "allowed_missing": 1,
    }  # fmt: skip
    totals = report.totals()
    assert totals["keys"]["loaded"] == {"count": 2, "percent": 33.33, "bytes": 16}
    assert totals["parameters"]["loaded"] == {"count": 2, "percent": 33.33, "bytes": 16}
    assert totals["keys"]["dropped"]["bytes"] == 8
    by_name = {entry.name: entry for entry in report.parameters}
    assert (by_name["bad"].shape, by_name["bad"].found_shape) == ((2,), (3,))
    assert str(by_name["dino.x"].origins[0]) == "dinov2:x"
    assert by_name["optional.y"].reason == "--allow-missing optional.*"
    assert next(entry for entry in report.keys if entry.kind == "dropped").reason == "a training counter"
    assert not report.ok


def test_report_survives_json() -> None:
    rules = [Split("qkv", ("q", "k", "v")), Drop("n", "counter"), Backfill("z", "second")]
    tensors = {"qkv": torch.ones(6).half(), "n": torch.tensor(1), "scalar": torch.tensor(2.0), "odd": torch.ones(1)}
    network = {"q": Spec((2,)), "k": Spec((2,)), "v": Spec((3,)), "scalar": Spec(()), "z": Spec((1,))}
    report = account(remapped(tensors, rules), network, ["z*"])
    assert WeightReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    data = report.to_dict()
    data["keys"][0]["kind"] = "lost"
    with pytest.raises(ValueError, match="unknown class"):
        WeightReport.from_dict(data)


def test_a_key_that_was_cut_up_takes_its_worst_class() -> None:
    tensors = {"qkv": torch.ones(6)}
    rules = [Split("qkv", ("q", "k", "v"))]
    network: dict[str, Any] = {n: Spec((2,)) for n in "qkv"}
    assert key_kinds(account(remapped(tensors, rules), network)) == {"qkv": "loaded"}
    report = account(remapped(tensors, rules), {"q": Spec((2,)), "k": Spec((2,))})
    assert [(e.kind, e.targets, e.reason) for e in report.keys] == [("unexpected", ("q", "k"), "as 'v'")]
    report = account(remapped(tensors, [*rules, Drop("v", "unused")]), {"q": Spec((2,)), "k": Spec((2,))})
    assert [(e.kind, e.reason) for e in report.keys] == [("dropped", "unused")]
    assert report.ok


def test_joined_keys_are_all_loaded_into_one_parameter() -> None:
    report = account(
        remapped({"q": torch.ones(2), "k": torch.ones(2)}, [Concatenate(("q", "k"), "qk")]), {"qk": Spec((4,))}
    )
    assert key_kinds(report) == {"q": "loaded", "k": "loaded"}
    assert [str(o) for o in report.parameters[0].origins] == ["checkpoint:q", "checkpoint:k"]


NAMES = ["a", "b", "c.w", "c.b", "d"]


@settings(max_examples=200, deadline=None)
@given(
    file=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3)),
    second=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3)),
    network=st.dictionaries(st.sampled_from([*NAMES, "e", "f"]), st.integers(1, 3)),
    rules=st.lists(
        st.sampled_from(
            [
                Rename.exact("a", "e"),
                Drop("b", "not used"),
                Split("c.w", ("c.x", "c.y"), sizes=(1, 1)),
                Concatenate((r"c\.b", "d"), "f"),
                Backfill("[abe]", "second", (Drop("d", "never"),)),
            ]
        ),
        unique_by=id,
    ),
    allow=st.lists(st.sampled_from(["*", "c.*", "e"]), max_size=2),
)
def test_every_key_and_every_parameter_is_in_exactly_one_class(
    file: dict[str, int], second: dict[str, int], network: dict[str, int], rules: list[Rule], allow: list[str]
) -> None:
    files = {name: torch.ones(size) for name, size in file.items()}
    others = {"second": {name: torch.ones(size) for name, size in second.items()}}
    used = others if any(isinstance(rule, Backfill) for rule in rules) else {}
    try:
        result = remapped(files, rules, **used)
    except WeightsError:
        return
    report = account(result, {name: Spec((size,)) for name, size in network.items()}, allow)
    expected = {("checkpoint", name) for name in files} | {(s, name) for s, c in used.items() for name in c}
    assert sorted((e.origin.source, e.origin.key) for e in report.keys) == sorted(expected)
    assert sorted(e.name for e in report.parameters) == sorted(network)
    assert sum(v["count"] for v in report.totals()["keys"].values()) == len(expected)
    assert sum(v["count"] for v in report.totals()["parameters"].values()) == len(network)
    assert {e.kind for e in report.keys} <= set(KEY_CLASSES)
    assert {e.kind for e in report.parameters} <= set(PARAMETER_CLASSES)
    for entry in report.of_parameters("loaded", "backfilled"):
        assert entry.found_shape == (network[entry.name],)
        assert entry.origins


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.zeros(2), persistent=False)


def filled(network: nn.Module, **dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: (torch.randn(t.shape) if t.is_floating_point() else torch.tensor(41)).to(
            dtypes.get(name.split(".")[0], t.dtype)
        )
        for name, t in network.state_dict().items()
    }


def test_load_copies_every_value_and_converts_half_precision() -> None:
    network = Net().eval()
    tensors = filled(network, first=torch.float16)
    result = remapped(tensors)
    report = account(result, network_state(network))
    assert [e.name for e in report.conversions] == ["first.weight", "first.bias"]
    assert {(e.found_dtype, e.dtype) for e in report.conversions} == {("float16", "float32")}
    assert "table" not in parameter_kinds(report)
    load_into(network, result, report)
    for name, value in network.state_dict().items():
        assert torch.equal(value, tensors[name].to(value.dtype)), name
    assert network.first.weight.dtype == torch.float32
    assert network.first.weight.requires_grad


def test_load_accepts_allowed_missing_only_and_leaves_it_as_it_was() -> None:
    network = Net()
    before = network.first.bias.detach().clone()
    tensors = filled(network)
    del tensors["first.bias"]
    result = remapped(tensors)
    with pytest.raises(WeightsError, match="1 missing, 0 unexpected, 0 misshapen"):
        load_into(network, result, account(result, network_state(network)))
    report = account(result, network_state(network), ["first.b*"])
    assert report.to_dict()["allow_missing"] == ["first.b*"]
    load_into(network, result, report)
    assert torch.equal(network.first.bias, before)
    assert torch.equal(network.first.weight, tensors["first.weight"])


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_a_refused_load_changes_nothing_and_lists_names(damage: str) -> None:
    network = Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = filled(network)
    if damage == "missing":
        del tensors["norm.running_var"]
    elif damage == "unexpected":
        tensors["norm.other"] = torch.ones(1)
    else:
        tensors["norm.running_var"] = torch.ones(7)
    result = remapped(tensors)
    with pytest.raises(WeightsError, match=damage) as error:
        load_into(network, result, account(result, network_state(network)), hint="try the other one")
    assert ("norm.other" if damage == "unexpected" else "norm.running_var") in error.value.message
    assert error.value.hint == "try the other one"
    if damage == "misshapen":
        assert "the file has [7], the network [3]" in error.value.message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_long_list_is_cut_with_its_count_and_the_second_file_named() -> None:
    network = {f"dino.{i}": Spec((1,)) for i in range(40)}
    result = remapped({"a": torch.ones(1)}, [Backfill("dino.*", "dinov2")])
    with pytest.raises(WeightsError, match=r"dino\.11\n    … and 28 more") as error:
        load_into(Net(), result, account(result, {**network, "a": Spec((1,))}))
    assert error.value.hint is not None
    assert "dinov2" in error.value.hint


@pytest.mark.parametrize(
    ("given_dtype", "wanted", "fits"),
    [
        ("float16", "float32", True),
        ("bfloat16", "float32", True),
        ("float64", "float32", True),
        ("float32", "float16", True),
        ("int32", "int64", True),
        ("int64", "int32", False),
        ("int64", "float32", False),
        ("float32", "int64", False),
        ("uint8", "float32", False),
        ("bool", "float32", False),
        ("float8_e4m3fn", "float32", False),
        ("complex64", "float32", False),
    ],
)
def test_dtypes_convert_only_where_meaning_is_kept(given_dtype: str, wanted: str, fits: bool) -> None:
    tensor = torch.zeros(2).to(getattr(torch, given_dtype))
    report = account(remapped({"a": tensor}), {"a": Spec((2,), wanted)})
    assert report.ok is fits
    assert fits or report.parameters[0].reason == f"the file has {given_dtype}, the network {wanted}"


def test_a_conversion_that_overflows_is_an_error() -> None:
    network = nn.Linear(1, 1, bias=False).half()
    result = remapped({"weight": torch.tensor([[1e6]])})
    with pytest.raises(WeightsError, match="values that float16 cannot hold"):
        load_into(network, result, account(result, network_state(network)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("names", [["a.weight"], ["b.weight"], ["a.weight", "b.weight"]])
@pytest.mark.parametrize("detached", [False, True])
def test_shared_parameters_count_once_under_any_of_their_names(names: list[str], detached: bool) -> None:
    network, value = Tied(), torch.randn(2, 2)
    result = remapped({name: value.clone() for name in names})
    report = account(result, network.state_dict() if detached else network_state(network))
    assert [(e.name, e.aliases, e.kind) for e in report.parameters] == [("a.weight", ("b.weight",), "loaded")]
    assert set(key_kinds(report).values()) == {"loaded"}
    load_into(network, result, report)
    assert torch.equal(network.b.weight, value)


def test_shared_parameters_on_the_meta_device_are_seen() -> None:
    with torch.device("meta"):
        network = Tied()
    assert len(account(remapped({"b.weight": torch.ones(2, 2)}), network_state(network)).parameters) == 1


def test_shared_parameters_with_two_values_are_refused() -> None:
    result = remapped({"a.weight": torch.ones(2, 2), "b.weight": torch.zeros(2, 2)})
    report = account(result, network_state(Tied()))
    assert set(key_kinds(report).values()) == {"misshapen"}
    assert "different values" in report.parameters[0].reason


def test_several_networks_are_told_apart_by_prefix() -> None:
    networks = {"extractor": nn.Linear(1, 1), "matcher": nn.Linear(1, 2)}
    tensors = {name: torch.randn(t.shape) for name, t in network_state(networks).items()}
    assert list(tensors) == ["extractor.weight", "extractor.bias", "matcher.weight", "matcher.bias"]
    result = remapped(tensors)
    load_into(networks, result, account(result, network_state(networks)))
    assert torch.equal(networks["matcher"].weight, tensors["matcher.weight"])


def test_a_network_on_the_meta_device_is_not_loaded_silently() -> None:
    with torch.device("meta"):
        network = nn.Linear(1, 1)
    result = remapped({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    with pytest.raises(WeightsError, match="meta device"):
        load_into(network, result, account(result, network_state(network)))


def test_a_report_of_another_network_is_refused() -> None:
    result = remapped({"weight": torch.ones(1, 1)})
    report = account(result, network_state(nn.Linear(1, 1, bias=False)))
    with pytest.raises(WeightsError, match="another network: 'bias'"):
        load_into(nn.Linear(1, 1), result, report)


def test_an_account_that_lost_a_key_is_an_error() -> None:
    good = remapped({"a": torch.ones(1)})
    broken = Remapped({}, {}, (), good.inputs)
    with pytest.raises(WeightsError, match=r"lost 1 keys .*'checkpoint:a'"):
        account(broken, {})


def test_entries_are_frozen() -> None:
    for kind in (KeyEntry, ParameterEntry, WeightReport):
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]

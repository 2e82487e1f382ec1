"""WeightSpec: what it refuses, that JSON and pickle keep it, and the sizes of the simplest family."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import attention_spec, gru_spec
from torch import nn

from wsl.spec import Connection, Label, NeuronGroup, SpecError, StoredTensor, VirtualTensor, WeightSpec, mlp_spec

EXAMPLES: dict[str, Callable[[], WeightSpec]] = {
    "mlp": lambda: mlp_spec([3, 4, 2]),
    "siren": lambda: mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0}, output_offset=0.5),
    "gru": gru_spec,
    "attention": attention_spec,
}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_json_and_pickle_keep_everything(name: str) -> None:
    spec = EXAMPLES[name]()
    for copy in (WeightSpec.from_json(spec.to_json()), pickle.loads(pickle.dumps(spec)), spec.replace()):
        assert copy == spec and hash(copy) == hash(spec) and copy.digest == spec.digest
        assert copy.tensors == spec.tensors and copy.labels == spec.labels and copy.groups == spec.groups
        assert copy.connections == spec.connections and copy.numel == spec.numel
    other = spec.replace(verified=True)
    assert other != spec and WeightSpec.from_json(other.to_json()).verified


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_tensors_cover_the_row_once(name: str) -> None:
    spec = EXAMPLES[name]()
    positions = torch.cat([torch.from_numpy(t.index().ravel()) for t in spec.tensors])
    assert torch.equal(positions.sort().values, torch.arange(spec.numel))
    assert sum(t.numel for t in spec.tensors) == spec.numel


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_an_mlp_has_the_parameters_of_its_module(widths: list[int]) -> None:
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    spec = mlp_spec(widths)
    assert spec.numel == sum(p.numel() for layer in layers for p in layer.parameters())
    assert [spec.size_of(g.name) for g in spec.groups] == widths
    assert [s.name for s in spec.stored[:2]] == ["seq.0.weight", "seq.0.bias"]
    assert len(spec.connections) == len(widths) - 1 == len(spec.tensors) // 2


def test_symmetries_follow_the_activation() -> None:
    found = {name: mlp_spec([2, 3, 1], name).label["hidden1"].symmetries for name in ("relu", "tanh", "sine", "gelu")}
    assert found == {
        "relu": ("permutation", "scaling"),
        "tanh": ("permutation", "sign"),
        "sine": ("permutation", "sign", "phase"),
        "gelu": ("permutation",),
    }
    spec = mlp_spec([2, 3, 1])
    assert [x.name for x in spec.labels_with("scaling")] == ["hidden1"]
    assert [g.name for g in spec.groups_of_kind("output")] == ["output"]
    assert [c.source for c in spec.incoming("output")] == ["hidden1"]


def test_strides_give_the_positions() -> None:
    tensor = VirtualTensor("t", "weight", 5, (2, 3), (1, 2), ("a", "b"), (1, -1))
    assert tensor.index().tolist() == [[5, 7, 9], [6, 8, 10]]


def small(**changes: object) -> WeightSpec:
    parts: dict[str, object] = {
        "stored": (StoredTensor("w", (2, 3), 0),),
        "tensors": (VirtualTensor("w", "weight", 0, (2, 3), (3, 1), ("o", "i"), (1, -1)),),
        "labels": (Label("i", 3, "input"), Label("o", 2, "output")),
        "groups": (NeuronGroup("i", "i"), NeuronGroup("o", "o")),
        "connections": (Connection("i", "o", "linear", {"weight": "w"}),),
    }
    return WeightSpec(**(parts | changes))  # type: ignore[arg-type]


def _tensor(**changes: object) -> tuple[VirtualTensor, ...]:
    fields = {"name": "w", "role": "weight", "offset": 0, "shape": (2, 3), "strides": (3, 1), "axes": ("o", "i"),
              "scaling": (1, -1)} | changes  # fmt: skip
    return (VirtualTensor(**fields),)  # type: ignore[arg-type]


LABELS = (Label("i", 3, "input"), Label("o", 2, "output"))

REFUSED = {
    "repeated": ({"labels": (*LABELS, LABELS[0])}, r"labels repeat the names \['i'\]"),
    "kind": ({"labels": (Label("i", 3, "inner"), LABELS[1])}, r"Label\(name='i'.*kind is one of"),
    "symmetry": ({"labels": (Label("i", 3, "input", ("rotation",)), LABELS[1])}, "symmetries are among"),
    "fixed": ({"labels": (Label("i", 3, "fixed", ("sign",)), LABELS[1])}, "fixed label 'i' cannot have"),
    "group": ({"groups": (NeuronGroup("i", "z"), NeuronGroup("o", "o"))}, "group 'i' has the unknown label 'z'"),
    "activation": (
        {"groups": (NeuronGroup("i", "i"), NeuronGroup("o", "o", "swoosh"))},
        "group 'o' has the unknown activation 'swoosh'; known: ",
    ),
    "false claim": (
        {"labels": (Label("i", 3, "hidden", ("scaling",)), LABELS[1]), "groups": (NeuronGroup("i", "i", "tanh"),),
         "connections": ()},
        r"label 'i' claims \['scaling'\], which 'tanh' of group 'i'",
    ),
    "offset": (
        {"labels": (Label("i", 3, "hidden", ("sign",)), LABELS[1]),
         "groups": (NeuronGroup("i", "i", "tanh", {"offset": 0.5}),), "connections": ()},
        r"label 'i' claims \['sign'\]",
    ),
    "start": ({"stored": (StoredTensor("w", (2, 3), 1),)}, "stored tensor 'w' starts at 1, expected 0"),
    "ranks": ({"tensors": _tensor(axes=("o",))}, "tensor 'w': shape, strides, axes and scaling differ in length"),
    "role": ({"tensors": _tensor(role="kernel")}, "tensor 'w' has the unknown role 'kernel'"),
    "axis": ({"tensors": _tensor(axes=("o", "z"))}, "tensor 'w' has the unknown axis label 'z'"),
    "size": ({"tensors": _tensor(axes=("i", "o"))}, "tensor 'w': axis 'i' has size 2, its label has 3"),
    "outside": ({"tensors": _tensor(offset=1)}, "tensor 'w' reaches outside the row of 6 values"),
    "backwards": ({"tensors": _tensor(strides=(3, -1))}, "tensor 'w' reaches outside"),
    "twice": ({"tensors": _tensor(strides=(1, 1))}, r"position 1 of the row \(in 'w'\) is covered 2 times"),
    "not at all": ({"tensors": ()}, r"position 0 of the row \(in 'w'\) is covered 0 times"),
    "end": ({"connections": (Connection("i", "z", "linear"),)}, "connection 'i' → 'z' names the unknown group 'z'"),
    "part": (
        {"connections": (Connection("i", "o", "linear", {"weight": "v"}),)},
        "connection 'i' → 'o' names the unknown tensor 'v' as its weight",
    ),
}  # fmt: skip


def test_the_small_spec_is_sound() -> None:
    assert small().numel == 6


@pytest.mark.parametrize("name", list(REFUSED))
def test_contradictions_are_refused(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(SpecError, match=message):
        small(**changes)


def test_foreign_json_is_refused() -> None:
    data = json.loads(mlp_spec([2, 3, 1]).to_json())
    for broken, message in (
        (data | {"version": 99}, "version 99 is not readable; this release reads 1"),
        (data | {"author": "x"}, r"unknown fields \['author'\]"),
        ({k: v for k, v in data.items() if k != "tensors"}, "malformed: 'tensors'"),
        (data | {"labels": [{"name": "a", "weight": 3}]}, "malformed: .*weight"),
        ([], "version None"),
    ):
        with pytest.raises(SpecError, match=message):
            WeightSpec.from_dict(broken)
    with pytest.raises(SpecError, match=r"at least two positive widths, got \(3,\)"):
        mlp_spec([3])


def test_specs_cannot_be_changed() -> None:
    spec = mlp_spec([2, 3, 1], "sine", {"omega": 30.0})
    with pytest.raises(TypeError):
        spec.groups[1].parameters["omega"] = 1.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        spec.labels = ()  # type: ignore[misc]


def test_sizes_of_zero() -> None:
    """A layer without neurons is allowed; its tensors hold nothing."""
    spec = small(
        stored=(StoredTensor("w", (2, 0), 0),),
        tensors=_tensor(shape=(2, 0), strides=(0, 1)),
        labels=(Label("i", 0, "input"), Label("o", 2, "output")),
    )
    assert spec.numel == 0

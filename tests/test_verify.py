"""verify marks true specs and refuses false ones, naming the symmetry."""

from __future__ import annotations

import pytest
from specs import gru_spec

from wsl.spec import Label, SpecError, WeightSpec, mlp_spec
from wsl.verify import verify


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("relu", {}), ("leaky_relu", {"slope": 0.1}), ("tanh", {}), ("sine", {"omega": 3.0}), ("gelu", {}),
     ("identity", {}), ("hardtanh", {}), ("softplus", {})],
)  # fmt: skip
def test_true_specs_are_marked(activation: str, parameters: dict[str, float]) -> None:
    spec = mlp_spec([3, 6, 5, 2], activation, parameters)
    assert not spec.verified
    checked = verify(spec)
    assert checked.verified and checked == spec.replace(verified=True)


def _claiming(spec: WeightSpec, **symmetries: tuple[str, ...]) -> WeightSpec:
    labels = [Label(x.name, x.size, x.kind, symmetries.get(x.name, x.symmetries)) for x in spec.labels]
    return spec.replace(labels=labels)


def test_untied_layers_are_refused() -> None:
    """The axes of one hidden layer carry two labels, as a tracer that missed a tie would write."""
    spec = mlp_spec([3, 5, 2])
    other = Label("other", 5, "hidden", ("permutation",))
    tensors = [
        type(t)(t.name, t.role, t.offset, t.shape, t.strides, ("output", "other"), t.scaling)
        if t.axes == ("output", "hidden1") else t
        for t in spec.tensors
    ]  # fmt: skip
    with pytest.raises(SpecError, match=r"^permutation changes the outputs by"):
        verify(spec.replace(tensors=tensors, labels=(*spec.labels, other)))


def test_permuted_outputs_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^permutation changes the outputs by"):
        verify(_claiming(mlp_spec([3, 5, 2]), output=("permutation",)))


def test_wrong_exponents_are_refused() -> None:
    """A bias that does not scale with its row."""
    spec = mlp_spec([3, 5, 2])
    tensors = [
        type(t)(t.name, t.role, t.offset, t.shape, t.strides, t.axes, (0,)) if t.role == "bias" else t
        for t in spec.tensors
    ]
    with pytest.raises(SpecError, match=r"^scaling changes the outputs by"):
        verify(spec.replace(tensors=tensors))


def test_a_gru_verifies() -> None:
    """Permutation and sign of the state hold; a sign that forgets the gates' columns does not."""
    spec = gru_spec()
    assert verify(spec).verified
    tensors = [
        type(t)(t.name, t.role, t.offset, t.shape, t.strides, t.axes, (0, 0)) if "hh_l0.reset" in t.name and t.axes[1:]
        else t
        for t in spec.tensors
    ]  # fmt: skip
    with pytest.raises(SpecError, match=r"^sign changes the outputs by"):
        verify(spec.replace(tensors=tensors))

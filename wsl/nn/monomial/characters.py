"""Characters: what scales and signs of hidden neurons do to the entries of each tensor, read off the spec.

=====================  =====================  ==========================================================================
activation             factors d allowed      character of an entry that a neuron multiplies by d^p
=====================  =====================  ==========================================================================
ReLU, leaky ReLU       d > 0                  p
tanh, sine             d = ±1                 p modulo 2: a weight that leaves the neuron is like one that enters it
identity               d ≠ 0                  p
any other, unknown     d = 1                  none: what remains is the permutation
=====================  =====================  ==========================================================================

Each label has its own row of the table, so networks may mix activations. Specs that differ in their activations alone
share one layout: a label's factors are then those of all specs together, which every spec's own group is part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsl.nn.unf.layout import Character, Layout
from wsl.spec import VirtualTensor, WeightSpec


class RepeatedLabelError(ValueError):
    """A tensor has two axes of one label (a recurrent matrix); the message names it."""


class Action(NamedTuple):
    """What one spec's group does to the entries of a tensor: multiplies them by positive numbers, by signs."""

    scaled: bool
    signed: bool


def factors_of(specs: Sequence[WeightSpec]) -> dict[str, frozenset[str]]:
    """Label → which of ``scaling`` and ``sign`` any of the specs has for it; labels with neither are absent."""
    found: dict[str, frozenset[str]] = {}
    for spec in specs:
        for label in spec.labels:
            if held := frozenset(label.symmetries) & {"scaling", "sign"}:
                found[label.name] = found.get(label.name, frozenset()) | held
    return found


def monomial_layout(specs: Sequence[WeightSpec]) -> Layout:
    """The layout of specs that differ in symmetries only: neurons are axes, bundles have one character each.

    Raises:
        RepeatedLabelError: if a tensor has two axes of one permuted or scaled label.
    """
    factors = factors_of(specs)
    permuted = set.intersection(*({label.name for label in spec.labels_with("permutation")} for spec in specs))
    labels = specs[0].label
    moved = {name for name in permuted if labels[name].size > 1 or labels[name].kind == "hidden"} | set(factors)
    for tensor in specs[0].tensors:
        if repeated := next((a for a in tensor.axes if a in moved and tensor.axes.count(a) > 1), None):
            raise RepeatedLabelError(f"tensor {tensor.name!r} with axes {tensor.axes} has the label {repeated!r} twice")
    return Layout(specs[0], moved, freeze_single=False, character_of=lambda tensor: character(tensor, factors))


def character(tensor: VirtualTensor, factors: dict[str, frozenset[str]]) -> Character:
    """(label, exponent) pairs, sorted by label; exponents of labels with signs alone are modulo 2."""
    powers = {}
    for name, power in zip(tensor.axes, tensor.scaling, strict=True):
        if name in factors and (power := power if "scaling" in factors[name] else power % 2):
            powers[name] = power
    return tuple(sorted(powers.items()))


def action(spec: WeightSpec, tensor: VirtualTensor) -> Action:
    """What the spec's own group does to the entries of a tensor."""
    held = [(spec.label[name].symmetries, power) for name, power in zip(tensor.axes, tensor.scaling, strict=True)]
    return Action(
        scaled=any("scaling" in symmetries and power for symmetries, power in held),
        signed=any("sign" in symmetries and power % 2 for symmetries, power in held),
    )

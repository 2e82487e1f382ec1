"""Check a spec's symmetries numerically: a random group element must leave the network's outputs unchanged."""

from __future__ import annotations

import torch

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.spec import SYMMETRIES, SpecError, WeightSpec
from wsl.symmetry import act, draw


def verify(spec: WeightSpec, tolerance: float = 1e-9, seed: int = 0) -> WeightSpec:
    """The spec, marked verified, after random group elements on all labels left outputs unchanged in float64.

    Four networks with random weights are run on 16 random inputs, before and after each symmetry alone and all at once.

    Raises:
        SpecError: if outputs change by more than ``tolerance`` relative to their size; the message names the symmetry.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = WeightBatch(spec, normal(4, spec.numel, 1) * 0.5)
    (source,) = spec.groups_of_kind("input")
    inputs = normal(16, spec.size_of(source.name))
    before = execute(batch, inputs)
    for chosen in (*((s,) for s in SYMMETRIES), SYMMETRIES):
        element = draw(spec, len(batch), generator, chosen, dtype=torch.float64)
        change = (execute(act(element, batch), inputs) - before).abs().max() / before.abs().max()
        if not change <= tolerance:
            raise SpecError(f"{'+'.join(chosen)} changes the outputs by {change:.1e} (relative, allowed {tolerance})")
    return spec.replace(verified=True)

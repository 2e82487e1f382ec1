"""Check a spec's symmetries numerically: a random group element must leave the network's outputs unchanged."""

from __future__ import annotations

import torch

from wsl.batch import WeightBatch
from wsl.execute import execute, layout_of
from wsl.spec import SYMMETRIES, SpecError, WeightSpec
from wsl.symmetry import act, draw


def verify(spec: WeightSpec, tolerance: float = 1e-9, seed: int = 0, inputs: torch.Tensor | None = None) -> WeightSpec:
    """The spec, marked verified, after random group elements on all labels left outputs unchanged in float64.

    Four networks with random weights are run on 16 random inputs, before and after each symmetry alone and all at once.

    Args:
        inputs: as the network reads them; by default drawn: 5 steps of sequences, 16 pixels along an image's axes.

    Raises:
        SpecError: if outputs change by more than ``tolerance`` relative to their size; the message names the symmetry.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = WeightBatch(spec, normal(4, spec.numel, 1) * 0.5)
    for connection in spec.connections:
        if connection.kind == "norm" and "var" in connection.tensors:
            batch[connection.tensors["var"]].abs_().add_(0.1)
    if inputs is None:
        (source,) = spec.groups_of_kind("input")
        layout, size = layout_of(spec, source.name), spec.size_of(source.name)
        if layout.kind == "tokens":
            inputs = torch.randint(size, (16, 5), generator=generator)
        elif layout.kind == "image":
            inputs = normal(16, size, *(16 for _ in range(layout.rank)))
        else:
            inputs = normal(16, *(5 for _ in range(layout.rank)), size)
    before = execute(batch, inputs)
    for chosen in (*((s,) for s in SYMMETRIES), SYMMETRIES):
        element = draw(spec, len(batch), generator, chosen, dtype=torch.float64)
        change = (execute(act(element, batch), inputs) - before).abs().max() / before.abs().max()
        if not change <= tolerance:
            raise SpecError(f"{'+'.join(chosen)} changes the outputs by {change:.1e} (relative, allowed {tolerance})")
    return spec.replace(verified=True)

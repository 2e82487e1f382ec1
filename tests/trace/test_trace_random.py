"""Random graphs of layers, sums, products, slices and concatenations: tracing must never claim a false symmetry."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from wsl.trace import trace

ACTIVATIONS = (torch.relu, torch.tanh, torch.abs, torch.square, nn.functional.gelu)


class RandomGraph(nn.Module):
    """Each step reads one or two earlier values; two linear heads read the last two."""

    def __init__(self, seed: int, steps: int = 6) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.enter, self.layers, self.plan = nn.Linear(3, 6), nn.ModuleList(), []
        widths = [6]
        for _ in range(steps):
            kind = draw.choice(["linear", "norm", "add", "multiply", "concat", "half", "softmax", "activation"])
            i = draw.randrange(len(widths))
            j = draw.choice([k for k, w in enumerate(widths) if w == widths[i] or kind == "concat"])
            kind = "activation" if kind == "half" and widths[i] % 2 else kind
            width = {"linear": draw.choice([4, 6, 8]), "concat": widths[i] + widths[j], "half": widths[i] // 2}
            widths.append(width.get(kind, widths[i]))
            layers = {"linear": nn.Linear(widths[i], widths[-1]), "norm": nn.LayerNorm(widths[i])}
            self.layers.append(layers.get(kind, nn.Identity()))
            self.plan.append((kind, i, j, draw.choice(ACTIVATIONS)))
        self.last, self.before = nn.Linear(widths[-1], 2), nn.Linear(widths[-2], 2)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.enter(x)]
        for (kind, i, j, activation), layer in zip(self.plan, self.layers, strict=True):
            a, b = values[i], values[j]
            match kind:
                case "add":
                    values.append(a + b)
                case "multiply":
                    values.append(a * b)
                case "concat":
                    values.append(torch.cat([a, b], -1))
                case "half":
                    values.append(a.chunk(2, -1)[1])
                case "softmax":
                    values.append(a.softmax(-1))
                case "activation":
                    values.append(activation(a))
                case _:
                    values.append(layer(a))
        return self.last(values[-1]) + self.before(values[-2])


@pytest.mark.parametrize("seed", [s if s < 4 else pytest.param(s, marks=pytest.mark.slow) for s in range(40)])
def test_no_false_symmetry(seed: int) -> None:
    torch.manual_seed(seed)
    assert trace(RandomGraph(seed), torch.randn(5, 3)).verified

"""What watching gradients costs: one training step with and without a reading, and the share at the config's interval.

Two models: GATv2 on the embedded digits graph (node classification), and on the neural graphs of 32 INRs 2-32-32-1.
"off" is a step of a model that was watched before and is not now.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks.measure import Report, interleaved, matmul_unit
from wsl.batch import WeightBatch
from wsl.data.graph_data import GraphData
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.node.attention import GATv2Node
from wsl.gradient_flow.reader import FlowReader
from wsl.spec import mlp_spec

OPTIONS = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "conf" / "callbacks" / "gradient_flow.yaml").read_text()
)


def run() -> Report:
    every, samples = (OPTIONS["gradient_flow"][key] for key in ("every", "jacobian_samples"))
    report = Report(
        f"Gradient flow, a reading every {every} steps", ("model", "step, ms", "units", "off", "reading", "overall")
    )
    unit = matmul_unit()
    for name, (model, loss) in {"digits graph": digits_graph(), "INRs": inrs()}.items():
        never, watched = step(model, loss, None), step(model, loss, samples)
        watched()
        times = interleaved({"never": never, "off": step(model, loss, None), "watched": watched}, repeats=7)
        off, reading = times["off"] / times["never"], times["watched"] / times["never"]
        overall = 1 + (reading - 1) / every
        cells = (f"{times['never'] * 1e3:.0f}", f"{times['never'] / unit:.1f}")
        report.rows.append((name, *cells, f"{off:.2f}×", f"{reading:.2f}×", f"{overall:.3f}×"))
        report.goal(f"{name}: cost of a step when off", off, "<=", 1.1)
        report.goal(f"{name}: cost when on", overall, "<=", 1.1)
    return report


def step(model: nn.Module, loss: Callable[[], Tensor], samples: int | None) -> Callable[[], None]:
    """A training step; with a number of Jacobian samples also a reading."""
    optimizer = torch.optim.Adam(model.parameters())
    reader = FlowReader(model) if samples is not None else None

    def plain() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    def watched() -> None:
        assert reader is not None and samples is not None
        optimizer.zero_grad()
        reader.attach()
        value = loss()
        reader.before_backward(torch.Generator(), samples)
        value.backward()
        reader.after_backward()
        optimizer.step()
        reader.after_step()
        reader.detach()

    return plain if reader is None else watched


def digits_graph() -> tuple[nn.Module, Callable[[], Tensor]]:
    data = GraphData(path="digits_graph")
    model, batch = GATv2Node(data.spec, data.classes), data.example()
    return model, lambda: F.cross_entropy(model(batch)[batch.row_ids], batch.target)


def inrs() -> tuple[nn.Module, Callable[[], Tensor]]:
    spec = mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0})
    model = GATv2Encoder(spec, 10, width=32, layers=3, fourier_features=32)
    batch, target = WeightBatch(spec, 0.1 * torch.randn(32, spec.numel, 1)), torch.randint(10, (32,))
    return model, lambda: F.cross_entropy(model(batch), target)

"""What cannot be traced ends in one error that names the module or tensor."""

from __future__ import annotations

import networks as n
import pytest
import torch
from torch import Tensor, nn

from wsl.trace import TraceError, trace, trace_report


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_control_flow_on_values_names_the_module() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Branching(), nn.Linear(4, 2)))
    with pytest.raises(TraceError, match=r"Sequential\.1\.0 cannot be followed by torch.export"):
        trace(network, torch.randn(2, 3))


def test_wrong_inputs_name_the_module_that_fails() -> None:
    with pytest.raises(TraceError, match=r"MobileNet\.stem does not run on the example inputs: RuntimeError"):
        trace(n.MobileNet(), torch.randn(2, 5, 8, 8))
    with pytest.raises(TraceError, match=r"Seq2Seq does not run .* missing 1 required positional argument"):
        trace(n.Seq2Seq(), n.tokens())
    with pytest.raises(TraceError, match="named ones go to kwargs"):
        trace(n.Siren(), {"x": torch.randn(2, 2)})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    network = n.LeNet()
    network.fc1.weight.data[3, 2] = bad
    with pytest.raises(TraceError, match=r"LeNet: 'fc1.weight' holds NaN or infinite"):
        trace(network, n.images(1))


def test_tensors_that_are_no_weights_are_named() -> None:
    network = nn.Linear(3, 2)
    network.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(TraceError, match=r"'table' is a parameter of type torch.int64"):
        trace(network, torch.randn(2, 3))
    network = nn.Linear(3, 2, dtype=torch.complex64)
    with pytest.raises(TraceError, match=r"'weight' is torch.complex64"):
        trace(network, torch.randn(2, 3, dtype=torch.complex64))
    with pytest.raises(TraceError, match="'weight' is not initialised"):
        trace(nn.LazyLinear(3), torch.randn(2, 3))
    with pytest.raises(TraceError, match="ReLU has no floating-point weights"):
        trace(nn.ReLU(), torch.randn(2, 3))


def test_a_module_that_is_random_in_eval_mode_is_named() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    with pytest.raises(TraceError, match=r"Noisy.*differ from run to run"):
        trace(Noisy(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))


def test_a_false_rule_cannot_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a rule to miss a tie, tracing must end in an error that names the label, not in a spec."""
    from wsl.trace import graph
    from wsl.trace.rules import elementwise

    monkeypatch.setitem(graph.RULES, "sigmoid", elementwise.activation("relu"))
    with pytest.raises(TraceError, match=r"internal error, Sequential got a false symmetry: .*scaling.*\['0'\]"):
        trace(n.mlp(3, 4, 2, activation=nn.Sigmoid), torch.randn(5, 3))


def test_a_layer_registered_twice_is_stored_once() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 2))
    report = trace_report(network, torch.randn(5, 3))
    assert report.aliases == {"4.weight": "2.weight", "4.bias": "2.bias"}
    weight = report.spec.tensor["2.weight"]
    assert weight.axes[0] == weight.axes[1]  # used twice in a row: its own outputs are its inputs
    assert [label.size for label in report.spec.labels if label.kind == "hidden"] == [4]


def test_a_tensor_that_nothing_reads_is_fixed_and_free() -> None:
    network = n.mlp(3, 4, 2)
    network.unused = nn.Parameter(torch.randn(5))
    report = trace_report(network, torch.randn(5, 3))
    assert [(f.tensor, f.reasons) for f in report.frozen if f.tensor == "unused"] == [
        ("unused", ("not read by the forward pass",))
    ]
    assert [f.tensor for f in report.free] == ["unused"]


def test_an_unusual_use_of_a_known_operation_freezes() -> None:
    class VectorWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.vector = nn.Linear(3, 4), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(torch.relu(self.layer(x)), self.vector)

    report = trace_report(VectorWeight(), torch.randn(5, 3))
    reasons = {f.tensor: f.reasons for f in report.frozen}
    assert "does not cover" in reasons["vector"][0]
    assert not [label for label in report.spec.labels if label.kind == "hidden"]

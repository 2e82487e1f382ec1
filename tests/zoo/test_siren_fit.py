"""Fitting many SIRENs at once: the kernels against plain PyTorch, in any company, and how networks start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from wsl.zoo.build import siren_native
from wsl.zoo.build.siren_fit import Kernel, Schedule, Siren, fit, initial_values
from wsl.zoo.coordinates import grid

KERNELS: tuple[Kernel, ...] = ("native", "torch")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "native" and not siren_native.available():
        pytest.skip("no C compiler")
    return request.param


class Sine(nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega * x)


def plain_fit(siren: Siren, row: np.ndarray, x: np.ndarray, y: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """One network at a time, as one would write it with nn.Module, autograd and torch.optim.Adam."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(siren.widths[:-1], siren.widths[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), Sine(siren.omega)]
    network = nn.Sequential(*layers[:-1]).to(torch.from_numpy(row).dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(row.copy()), network.parameters())
    inputs, target = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(inputs) + siren.output_offset - target).square().mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach().numpy()


def problem(siren: Siren, networks: int, dtype: type, side: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = grid(side, side + 2)
    x = x if siren.widths[0] == 2 else np.concatenate([x, x[:, :1] * x[:, 1:]], axis=1)
    targets = np.random.default_rng(1).random((networks, len(x), siren.widths[-1]))
    seeds = [(7, 0, image, 0) for image in range(networks)]
    return initial_values(siren, seeds).astype(dtype), x.astype(dtype), targets.astype(dtype)


@pytest.mark.parametrize(
    "siren",
    [
        Siren((2, 32, 32, 1)),
        Siren((2, 32, 32, 3)),
        Siren((2, 5, 1), omega=11.0, output_offset=0.0),
        Siren((3, 20, 40, 7, 2), omega=20.0, output_offset=-0.25),
    ],
    ids=lambda siren: "-".join(map(str, siren.widths)),
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-6)])
def test_fitting_together_equals_fitting_each_alone(
    kernel: Kernel, siren: Siren, dtype: type, tolerance: float
) -> None:
    values, x, targets = problem(siren, 4, dtype)
    before = values.copy()
    together = fit(siren, values, x, targets, Schedule(5e-4, 20), kernel)
    alone = np.stack([plain_fit(siren, row, x, y, 5e-4, 20) for row, y in zip(values, targets, strict=True)])
    np.testing.assert_array_equal(values, before)
    assert together.values.dtype == dtype
    assert np.abs(alone - values).max() > 5e-3  # they did move
    np.testing.assert_allclose(together.values, alone, rtol=0, atol=tolerance)
    assert together.steps.tolist() == [20] * 4


def test_error_is_that_of_the_fitted_weights(kernel: Kernel) -> None:
    siren = Siren((2, 16, 24, 3))
    values, x, targets = problem(siren, 3, np.float64)
    fitted = fit(siren, values, x, targets, Schedule(1e-3, 7), kernel)
    again = fit(siren, fitted.values, x, targets, Schedule(1e-3, 0), kernel)
    np.testing.assert_array_equal(again.values, fitted.values)
    np.testing.assert_allclose(again.mse, fitted.mse, rtol=1e-12)
    assert again.steps.tolist() == [0, 0, 0]
    h = np.broadcast_to(x, (3, *x.shape))
    for layer, (n_in, n_out) in enumerate(((2, 16), (16, 24), (24, 3))):
        start = sum(o * (i + 1) for i, o in ((2, 16), (16, 24), (24, 3))[:layer])
        weight = fitted.values[:, start : start + n_in * n_out].reshape(3, n_out, n_in)
        bias = fitted.values[:, start + n_in * n_out : start + n_out * (n_in + 1)]
        z = h @ weight.transpose(0, 2, 1) + bias[:, None]
        h = np.sin(30 * z) if layer < 2 else z
    np.testing.assert_allclose(((h + 0.5 - targets) ** 2).mean((1, 2)), fitted.mse, rtol=1e-10)


def test_network_stops_at_the_error_asked_for_and_freezes(kernel: Kernel) -> None:
    siren = Siren((2, 16, 16, 1))
    values, x, targets = problem(siren, 5, np.float64)
    targets *= np.linspace(0.1, 1, 5)[:, None, None]
    free = fit(siren, values, x, targets, Schedule(1e-3, 30), kernel)
    stop = float(np.median(free.mse)) * 1.0001
    stopped = fit(siren, values, x, targets, Schedule(1e-3, 30, stop), kernel)
    done = stopped.mse <= stop
    assert done.any() and not done.all()
    assert (stopped.steps[~done] == 30).all() and len(set(stopped.steps)) > 2
    for b in range(5):
        exactly = fit(siren, values[b : b + 1], x, targets[b : b + 1], Schedule(1e-3, int(stopped.steps[b])), kernel)
        np.testing.assert_allclose(stopped.values[b], exactly.values[0], rtol=0, atol=1e-12)
        if done[b] and stopped.steps[b]:
            before = Schedule(1e-3, int(stopped.steps[b]) - 1)
            assert fit(siren, values[b : b + 1], x, targets[b : b + 1], before, kernel).mse[0] > stop


def test_compiled_kernel_gives_the_same_bits_in_any_company() -> None:
    if not siren_native.available():
        pytest.skip("no C compiler")
    siren = Siren((2, 32, 32, 1))
    values, x, targets = problem(siren, 6, np.float32)
    together = fit(siren, values, x, targets, Schedule(5e-4, 50), "native")
    order = np.array([4, 0, 5])
    few = fit(siren, values[order], x, targets[order], Schedule(5e-4, 50), "native")
    np.testing.assert_array_equal(few.values, together.values[order])


def test_compiled_sine_holds_for_large_arguments() -> None:
    if not siren_native.available():
        pytest.skip("no C compiler")
    siren = Siren((2, 16, 1), omega=1.0, output_offset=0.0)
    x = np.linspace(-3000, 3000, 4001, dtype=np.float64)[:, None].repeat(2, 1)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 3e-7)):
        row = np.zeros((1, siren.numel), dtype=dtype)
        row[0, 0], row[0, 48] = 1, 1  # y = sin(x)
        inputs = x.astype(dtype)
        exact = np.sin(inputs[:, :1].astype(np.float64))
        mse = fit(siren, row, inputs, exact[None].astype(dtype), Schedule(1e-3, 0), "native").mse[0]
        assert mse <= tolerance**2


def test_wrong_shapes_are_refused() -> None:
    siren = Siren((2, 8, 1))
    values, x, targets = problem(siren, 2, np.float32)
    for bad in ((values[:, 1:], x, targets), (values, x[:, :1], targets), (values, x, targets[:1])):
        with pytest.raises(ValueError, match="do not fit"):
            fit(siren, *bad, Schedule(1e-3, 1))
    deep = Siren((2, *[2] * 16, 1))
    if siren_native.available():
        with pytest.raises(ValueError, match="1 to 15 hidden layers"):
            fit(deep, *problem(deep, 1, np.float32), Schedule(1e-3, 1), "native")


def test_init_follows_the_published_convention() -> None:
    siren = Siren((2, 32, 32, 1))
    rows = initial_values(siren, [(0, 0, image, 0) for image in range(200)])
    for start, fan_in, count in ((0, 2, 64), (96, 32, 1024), (1152, 32, 32)):
        bound = np.sqrt(6 / fan_in) / 30
        weights = rows[:, start : start + count]
        assert np.abs(weights).max() <= np.float32(bound)
        assert abs(weights.std() / (bound / np.sqrt(3)) - 1) < 0.02 and abs(weights.mean()) < bound / 30
        biases = rows[:, start + count : start + count + count // fan_in]
        assert not biases.any()
    assert len(np.unique(rows[:, 0])) == 200


def test_init_of_the_nfn_sets_has_the_spread_of_the_published_networks() -> None:
    """The first layer and the biases hardly move in training: deviations 0.287, 0.409 and 0.104 are published."""
    siren = Siren((2, 32, 32, 1))
    rows = initial_values(siren, [(0, 0, image, 0) for image in range(300)], "nfn")
    parts = np.split(rows, np.cumsum([64, 32, 1024, 32, 32]), axis=1)
    bounds = [1 / 2, 2**-0.5, np.sqrt(6 / 32) / 30, 32**-0.5, np.sqrt(6 / 32) / 30, 32**-0.5]
    for part, bound in zip(parts, bounds, strict=True):
        assert np.abs(part).max() <= np.float32(bound) and part.std() == pytest.approx(bound / np.sqrt(3), rel=0.04)
    assert parts[0].std() == pytest.approx(0.287, rel=0.02) and parts[1].std() == pytest.approx(0.409, rel=0.02)
    assert parts[3].std() == pytest.approx(0.104, rel=0.03)


def test_init_is_a_function_of_the_seeds_alone() -> None:
    siren = Siren((2, 8, 1))
    key = (3, 1, 12, 2)
    row = initial_values(siren, [(0, 0, 0, 0), key])[1]
    np.testing.assert_array_equal(initial_values(siren, [key])[0], row)
    for position in range(4):
        other = list(key)
        other[position] += 1
        assert not np.array_equal(initial_values(siren, [other])[0], row)

"""One mean and deviation for each network: PyTorch Geometric's graph mode, alone and in any batch."""

from __future__ import annotations

import pytest
import torch

from wsl.graphs.geometric import geometric
from wsl.nn.network_norm import NetworkNorm, Owners, node_norm

SIZES = (5, 1, 7, 3)


def states() -> tuple[torch.Tensor, Owners]:
    owner = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    return torch.randn(sum(SIZES), 6, dtype=torch.float64) * (1 + owner[:, None]) + owner[:, None], Owners(owner, 4)


def norm() -> NetworkNorm:
    made = NetworkNorm(6, eps=1e-14).double()
    torch.nn.init.normal_(made.weight)
    torch.nn.init.normal_(made.bias)
    return made


def test_it_is_graph_mode_with_a_graph_for_each_network() -> None:
    x, owners = states()
    made, theirs = norm(), geometric("nn").LayerNorm(6, eps=1e-14, mode="graph").double()
    theirs.load_state_dict(made.state_dict())
    torch.testing.assert_close(made(x, owners), theirs(x, owners.owner), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(made(x, owners), theirs(x), rtol=0.01), "one graph for all is another function"


def test_a_network_alone_gives_what_it_gives_in_a_batch() -> None:
    x, owners = states()
    made = norm()
    together = made(x.unsqueeze(0), owners).squeeze(0).split(SIZES)
    for alone, found in zip(x.split(SIZES), together, strict=True):
        torch.testing.assert_close(made(alone.unsqueeze(0)).squeeze(0), found, rtol=1e-12, atol=1e-12)


def test_networks_of_one_size_are_a_list_too() -> None:
    x, made = torch.randn(3, 4, 6, dtype=torch.float64), norm()
    owners = Owners(torch.arange(3).repeat_interleave(4), 3)
    torch.testing.assert_close(made(x).flatten(0, 1), made(x.flatten(0, 1), owners), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("listed", [False, True])
def test_equal_states_have_gradients(listed: bool) -> None:
    x = torch.full((1, 3, 6), 2.0, requires_grad=True)
    out = NetworkNorm(6)(x, Owners(torch.zeros(3, dtype=torch.int64), 1) if listed else None)
    (out * torch.randn_like(out)).sum().backward()
    assert torch.equal(out, torch.zeros_like(out)) and x.grad is not None and x.grad.isfinite().all()


def test_a_network_without_nodes_is_no_harm() -> None:
    x, _ = states()
    owners = Owners(torch.tensor([0] * 9 + [2] * 7), 3)
    assert norm()(x, owners).isfinite().all()


@pytest.mark.parametrize("kind", ["layer", "none"])
def test_other_norms_do_not_look_at_owners(kind: str) -> None:
    x, owners = states()
    made = node_norm(kind, 6).double()  # type: ignore[arg-type]
    expected = torch.nn.functional.layer_norm(x, (6,)) if kind == "layer" else x
    torch.testing.assert_close(made(x, owners), expected)

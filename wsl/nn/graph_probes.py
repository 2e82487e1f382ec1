"""Probe features on an edge list: what the neurons of networks of any architecture answer to shared inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.execute import activations_of
from wsl.graphs.edge_list import EdgeList, as_mixed
from wsl.graphs.frame import ROLES, GraphFrame
from wsl.nn.probes import check_runs, input_shape
from wsl.spec import SpecError, WeightSpec


class GraphProbes(nn.Module):
    r"""Runs every network of a batch on M inputs and embeds each neuron's M values.

    .. math:: f_i = \mathrm{LayerNorm}_k(W_k\, [a_i(p_1), …, a_i(p_M)] + b_k)

    with :math:`a_i` the activation of neuron i, in feature maps its mean over positions (or its value at the position
    of the node, where each has one), and one map for the inputs, for each depth k of hidden layers, and for the
    outputs. Nodes that are no neurons (tables, queries) have none. Raw weights are run. Networks are run spec by spec,
    all those of one spec together: a batch in which nearly every network has its own architecture takes as many passes
    as networks.

    Source: Kofinas et al., section 3 ("probe features"), for MLPs.

    Args:
        specs: the architectures; all have one input group, of one size and layout (vectors or images).
        probes: M.
        width: C.
        size: height and width of probe images.
        images: probes ``[M, …]`` to use as they are; by default they start as U(−1, 1) and learn.

    Shapes: a graph and its batch → ``[ΣN, C]``.

    Raises:
        SpecError: if networks cannot be run, or differ in their inputs.
    """

    probes: Tensor

    def __init__(
        self,
        specs: Sequence[WeightSpec],
        frame: GraphFrame,
        probes: int,
        width: int,
        size: int = 32,
        images: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.frame = frame
        shape = input_shape(specs, size)
        if images is None:
            self.probes = nn.Parameter(torch.empty(probes, *shape).uniform_(-1, 1))
        elif images.dim() != len(shape) + 1 or images.shape[1] != shape[0] or len(images) < probes:
            raise SpecError(
                f"probes of shape {list(images.shape)} are given, the networks read {probes} of {list(shape)}"
            )
        else:
            self.register_buffer("probes", images[:probes].to(torch.get_default_dtype()).clone())
        check_runs(specs, self.probes[:1].detach())
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width)) for _ in range(frame.depth + 2)
        )

    def forward(self, graph: EdgeList, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        answers, neurons = self.answers(graph, batch)
        layer = torch.where(graph.role == ROLES.index("input"), 0, 1 + graph.row)
        layer = torch.where(graph.role == ROLES.index("output"), self.frame.depth + 1, layer)
        rows, parts = [], []
        for number, embed in enumerate(self.embed):
            of_layer = ((layer == number) & neurons).nonzero().squeeze(-1)
            rows.append(of_layer)
            parts.append(embed(answers.index_select(0, of_layer)))
        features = torch.cat(parts)
        return features.new_zeros(graph.num_nodes, features.shape[1]).index_copy(0, torch.cat(rows), features)

    def answers(self, graph: EdgeList, batch: WeightBatch | MixedWeightBatch) -> tuple[Tensor, Tensor]:
        """The M values of each node ``[ΣN, M]``, zeros where it is no neuron; and which are neurons, ``[ΣN]`` bool."""
        rows, found, neurons = [], [], []
        for networks, part in as_mixed(batch).split():
            values = activations_of(part, self.probes)
            here, is_neuron = self._of_spec(part, values)
            found.append(here.flatten(0, 1))
            neurons.append(is_neuron.repeat(len(part)))
            within = torch.arange(len(is_neuron), device=networks.device)
            rows.append((graph.node_offsets[networks].unsqueeze(-1) + within).flatten())
        if not rows:
            empty = batch.values.new_zeros(0, len(self.probes))
            return empty, empty.new_zeros(0, dtype=torch.bool)
        index, together = torch.cat(rows), torch.cat(found)
        ordered = torch.zeros_like(together).index_copy(0, index, together)
        return ordered, torch.empty_like(torch.cat(neurons)).index_copy(0, index, torch.cat(neurons))

    def _of_spec(self, batch: WeightBatch, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``[b, N, M]`` and ``[N]`` for networks of one spec."""
        parts, neurons = [], []
        for nodes in self.frame.graph(batch.spec).nodes:
            group, _, positions = (nodes.name, "", "") if nodes.name in values else nodes.name.rpartition("@")
            known = group in values
            if known and positions:
                value = values[_flattened(batch.spec, group, int(positions))].movedim(-1, 2).flatten(2).mT
            elif known:
                value = values[group]  # [b, M, *positions, size]
                value = (value.flatten(2, -2).mean(2) if value.dim() > 3 else value).mT
            else:
                value = batch.values.new_zeros(len(batch), nodes.size, len(self.probes))
            parts.append(value)
            neurons.append(torch.full((nodes.size,), known, device=batch.values.device))
        return torch.cat(parts, dim=1), torch.cat(neurons)


def _flattened(spec: WeightSpec, root: str, positions: int) -> str:
    """The group that is flattened where the neurons of ``root`` have a node for each of so many positions."""
    for connection in spec.connections:
        group = connection.source
        if math.prod(connection.attributes.get("spatial") or ()) != positions:
            continue
        while group != root and len(before := spec.incoming(group)) == 1:  # pooled, or otherwise handed on
            group = before[0].source
        if group == root:
            return connection.source
    raise SpecError(f"no connection flattens group {root!r} at {positions} positions")

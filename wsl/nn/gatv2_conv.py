"""GATv2 layer: PyTorch Geometric's constructor, state dict and outputs on the closed-form kernels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from wsl.graphs.blocks import BlockGraph
from wsl.nn.gatv2.csr import CsrForm
from wsl.nn.gatv2.dense_blocks import DenseBlocksForm
from wsl.nn.gatv2.edge_list import EdgeListForm
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.maps import Inputs
from wsl.nn.gatv2.problem import Form
from wsl.nn.gatv2.scores import LeakyReLUScore, SoftplusScore
from wsl.nn.gatv2.topology import Loops, topology
from wsl.nn.gatv2_function import Plan, Probe, gatv2
from wsl.nn.sparse.linear import apply_linear
from wsl.nn.sparse.sparse_input import SparseInput

SMALL = 2**23
"""E·H·C up to which a compiled layer runs as CSR: fewer calls count for more than temporaries that fit the cache."""


class GATv2Conv(nn.Module):
    r"""Graph attention whose ranking of neighbours depends on the query (Brody, Alon, Yahav, "How Attentive are Graph
    Attention Networks?", ICLR 2022), with hand-derived gradients (:mod:`wsl.nn.gatv2_function`).

        y_i = Σ_{e: j → i} α_e W_l x_j,    α_e = softmax_i ( a · σ(W_l x_j + W_r x_i + W_e f_e) )

    A drop-in for ``torch_geometric.nn.GATv2Conv``: same arguments, parameter names, initialisation and outputs. Edge
    features enter the score only, never the value. The linear maps are read as parameters, so forward hooks on
    ``lin_l`` and its siblings do not run. Second derivatives are refused.

    Args:
        in_channels: features of a node, or (sources, targets) for a bipartite graph; −1 reads them off the first input.
        out_channels: C, per head. heads: H. concat: heads side by side, else averaged.
        negative_slope: of the LeakyReLU in the score.
        dropout: probability of dropping an attention weight in training.
        add_self_loops: replace the self loops of the graph by one per node (per pair of equal number if bipartite).
        edge_dim: D; edge features are then required.
        fill_value: edge features of added loops, a value or "add", "mean", "min", "max", "mul" of the incoming ones.
        bias: in the maps and the output. share_weights: ``lin_r`` is ``lin_l``.
        residual: add a bias-free map of the target's features.
        flow: "source_to_target", or the reverse.
        score: "leaky_relu", or "softplus" (GAT+).
        direct: what a node adds of itself outside the softmax (GAT+): "theta_n" a map of its own, "theta_r" the target
            map again, biases included; self loops are then removed from the graph, and none added.
        form: how edge lists run: "edge_list" in chunks that stay in cache, "csr" deterministically on any device,
            "auto" the first unless an accelerator is asked for determinism or a small graph runs compiled. A
            :class:`BlockGraph` runs as dense blocks.
        compiled: fuse the passes over edges with ``torch.compile`` (seconds at the first call; needs a C++ compiler).

    Shapes:
        x ``[N, F]``, also as :class:`SparseInput`, or ``([N_s, F_s], [N_t, F_t])``; edge_index ``[2, E]``, an
        :class:`EdgeGraph`, or a :class:`BlockGraph` whose networks follow each other in x and edge_attr; edge_attr
        ``[E, D]``, ``[E]`` if D = 1; output ``[N_t, H·C]``, ``[N_t, C]`` without concat.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
        *,
        flow: Literal["source_to_target", "target_to_source"] = "source_to_target",
        score: Literal["leaky_relu", "softplus"] = "leaky_relu",
        direct: Literal["none", "theta_n", "theta_r"] = "none",
        form: Literal["auto", "edge_list", "csr"] = "auto",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if flow not in ("source_to_target", "target_to_source"):
            raise ValueError(f"flow is source_to_target or target_to_source, got {flow!r}")
        if score not in ("leaky_relu", "softplus"):
            raise ValueError(f"score is leaky_relu or softplus, got {score!r}")
        if direct not in ("none", "theta_n", "theta_r"):
            raise ValueError(f"direct is none, theta_n or theta_r, got {direct!r}")
        if form not in ("auto", "edge_list", "csr"):
            raise ValueError(f"form is auto, edge_list or csr, got {form!r}")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is a probability, got {dropout}")
        if residual and direct == "theta_n":
            raise ValueError("residual and theta_n are the same map of the target's features: choose one of them")
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.negative_slope, self.dropout, self.edge_dim = negative_slope, dropout, edge_dim
        self.add_self_loops, self.fill_value = add_self_loops and direct == "none", fill_value
        self.share_weights, self.residual = share_weights, residual
        self.flow, self.direct, self.form, self.compiled = flow, direct, form, compiled
        self.score = LeakyReLUScore(negative_slope) if score == "leaky_relu" else SoftplusScore()
        self.probe: Probe | None = None

        source, target = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
        width, outputs = heads * out_channels, out_channels * (heads if concat else 1)
        self.lin_l = _linear(source, width, bias)
        self.lin_r = self.lin_l if share_weights else _linear(target, width, bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge = None if edge_dim is None else _linear(edge_dim, width, bias=False)
        self.res = _linear(target, outputs, bias=False) if residual else None
        self.lin_n = _linear(target, outputs, bias=False) if direct == "theta_n" else None
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot for the maps and the attention vector, zero for the biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and not isinstance(module.weight, nn.UninitializedParameter):
                _reset_linear(module)
        _glorot(self.att)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.compiler.disable  # a compiled model runs the layer as it is, between its own parts
    def forward(
        self,
        x: Tensor | SparseInput | tuple[Tensor, Tensor],
        edge_index: Tensor | EdgeGraph | BlockGraph,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """y, and with ``return_attention_weights`` also ``(edge_index used, α [E', H])``.

        α is in the order of the edges given, without dropout, and differentiable; where self loops were added the
        edges used are the given ones without loops, then one loop per node.

        Raises:
            ValueError: if edge features are given or missing against ``edge_dim``, or have another shape.
        """
        direct = self.res if self.lin_n is None else self.lin_n
        if isinstance(x, SparseInput) and direct is not None:
            x = x.dense()  # which reads the features themselves
        mapped = isinstance(x, SparseInput)
        if isinstance(x, SparseInput):
            x_source, x_target = self._mapped(x)
        else:
            x_source, x_target = x if isinstance(x, (tuple, list)) else (x, None)
            self._materialise(x_source, x_target)
        edge_attr = self._checked(edge_attr)
        num_targets = len(x_source if x_target is None else x_target)
        if isinstance(edge_index, Tensor):
            loops: Loops = "replace" if self.add_self_loops else "keep" if self.direct == "none" else "remove"
            edges = topology(edge_index, len(x_source), num_targets, loops, self.flow == "target_to_source")
            edge_attr = None if edge_attr is None else edges.edge_features(edge_attr, self.fill_value)
            form, used = self._form(edges.graph, x_source), edges.edge_index
        else:
            form = self._prepared(edge_index, x_source, num_targets, edge_attr)
            used = None
        left, right = (_identity(x_source),) * 2 if mapped else (self.lin_l.weight, self.lin_r.weight)
        inputs = Inputs(
            x_source,
            left,
            self.att.squeeze(0),
            x_target=x_target,
            bias_l=None if mapped else self.lin_l.bias,
            weight_r=None if self.share_weights else right,
            bias_r=None if mapped or self.share_weights else self.lin_r.bias,
            edge_attr=edge_attr,
            weight_edge=None if self.lin_edge is None else self.lin_edge.weight,
            weight_direct=None if direct is None else direct.weight,
            bias=self.bias,
        )
        y, alpha = gatv2(self._plan(form), inputs)
        if not return_attention_weights:
            return y
        return y, (form.sorted_edges(alpha.device).edge_index() if used is None else used, form.to_caller(alpha))

    def _mapped(self, x: SparseInput) -> tuple[Tensor, Tensor | None]:
        """xl, and xr unless the map is shared: W costs what is not zero, the identity in its place next to nothing."""
        source = apply_linear(x, self.lin_l.weight, self.lin_l.bias)
        return source, None if self.share_weights else apply_linear(x, self.lin_r.weight, self.lin_r.bias)

    def _form(self, graph: EdgeGraph, x_source: Tensor) -> Form:
        deterministic = x_source.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
        small = self.compiled and len(graph) * self.att.numel() <= SMALL
        if self.form == "csr" or (self.form == "auto" and (deterministic or small)):
            return CsrForm(graph, self.compiled)
        return EdgeListForm(graph, compiled=self.compiled)

    def _prepared(
        self, graph: EdgeGraph | BlockGraph, x_source: Tensor, num_targets: int, edge_attr: Tensor | None
    ) -> Form:
        """Form of a graph that is taken as it is."""
        if self.add_self_loops or self.direct != "none":
            raise ValueError(
                "a prepared graph is taken with the self loops that it has: build the layer with add_self_loops=False "
                f"and direct='none', not add_self_loops={self.add_self_loops} and direct={self.direct!r}"
            )
        if isinstance(graph, BlockGraph):
            form: Form = DenseBlocksForm(graph, len(x_source) // graph.num_nodes, compiled=self.compiled)
            expected = (len(x_source) // graph.num_nodes * graph.num_nodes,) * 2
        else:
            form, expected = self._form(graph, x_source), (graph.num_sources, graph.num_targets)
        if (len(x_source), num_targets) != expected:
            raise ValueError(f"the graph joins {expected} nodes, features are given for {(len(x_source), num_targets)}")
        if edge_attr is not None and len(edge_attr) != form.num_edges:
            raise ValueError(f"edge_attr has {len(edge_attr)} rows, the graph has {form.num_edges} edges")
        return form

    def _plan(self, form: Form) -> Plan:
        dropout = self.dropout if self.training else 0.0
        seed = int(torch.randint(2**62, ())) if dropout > 0.0 else 0
        return Plan(form, self.concat, self.score, self.direct == "theta_r", dropout, seed, self.probe)

    def _checked(self, edge_attr: Tensor | None) -> Tensor | None:
        if (edge_attr is None) != (self.edge_dim is None):
            given = "none were given" if edge_attr is None else f"{tuple(edge_attr.shape)} were given"
            raise ValueError(f"edge_dim is {self.edge_dim}, but edge features: {given}")
        if edge_attr is None:
            return None
        edge_attr = edge_attr.unsqueeze(-1) if edge_attr.dim() == 1 else edge_attr
        if edge_attr.dim() != 2 or edge_attr.shape[1] != self.edge_dim:
            raise ValueError(f"edge_attr must be [E, {self.edge_dim}], got {tuple(edge_attr.shape)}")
        return edge_attr

    def _materialise(self, x_source: Tensor, x_target: Tensor | None) -> None:
        """Give lazily sized maps the sizes of the first input."""
        for module in (self.lin_l, self.lin_r, self.res, self.lin_n):
            if module is not None and isinstance(module.weight, nn.UninitializedParameter):
                module((x_source if module is self.lin_l or x_target is None else x_target)[:0])
                _reset_linear(module)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def _linear(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    return nn.LazyLinear(out_features, bias) if in_features == -1 else nn.Linear(in_features, out_features, bias)


def _identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _reset_linear(linear: nn.Linear) -> None:
    _glorot(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _glorot(weight: Tensor) -> None:
    """Uniform in ±√(6 / sum of the last two sizes), as PyTorch Geometric has it (also for att ``[1, H, C]``)."""
    bound = math.sqrt(6.0 / (weight.shape[-2] + weight.shape[-1]))
    nn.init.uniform_(weight, -bound, bound)

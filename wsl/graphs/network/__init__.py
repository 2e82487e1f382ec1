"""The neural graph of one spec: neurons (or channels) are nodes, weights (or kernels) edges, biases node values.

What a network holds beside linear layers and convolutions becomes nodes and edges too:

==================  ================================================================================================
linear              an edge per weight; a flattened feature map: see :class:`GraphOptions`
conv                an edge per pair of channels that meet, with the kernel as its values
norm                a diagonal layer: an edge per channel with gamma (running mean, variance), beta as a node value
skip, concat, …     an edge with the constant 1 (or the connection's scale) per pair of channels that it joins
pool, upsample, …   nothing, where a group only hands on what another one holds: both are the same nodes
attention           nodes for the channels of queries and keys and for those of values, which permute independently: an
                    edge holds (Q, K), or V; constant edges join the channels of a head
rnn, gru, lstm      an edge holds the weights of all gates; recurrent ones run among the neurons of the layer
embedding           an edge from each token to each channel
parameter           a table of K rows is K nodes with an edge per entry; a single row is a node value
multiply            an edge per channel with the learned factor, or the constant 1
unknown             constant edges (one-to-one under one label, else all-to-all); tensors as for ``parameter``
==================  ================================================================================================

Sources: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", section 3
and appendix; Lim et al., "Graph Metanetworks for Processing Diverse Neural Architectures", section 2.
"""

from __future__ import annotations

from functools import lru_cache

from wsl.graphs.network.builder import Builder
from wsl.graphs.network.parts import EdgeSet, GraphError, GraphOptions, NetworkGraph, Nodes, NodeValues
from wsl.graphs.network.rules import add_connection
from wsl.spec import WeightSpec

__all__ = ["EdgeSet", "GraphError", "GraphOptions", "NetworkGraph", "NodeValues", "Nodes", "network_graph"]

_NEURAL_GRAPH = GraphOptions()


@lru_cache(maxsize=1024)
def network_graph(spec: WeightSpec, options: GraphOptions = _NEURAL_GRAPH) -> NetworkGraph:
    """The neural graph of a spec.

    Raises:
        GraphError: if the spec has no connections, an empty group, or something that no edge can stand for; the
            message says what.
    """
    builder = Builder(spec, options)
    for builder.current, connection in enumerate(spec.connections):
        add_connection(builder, connection)
    return builder.finish()

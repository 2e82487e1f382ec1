"""Which encoders the tables of docs/results.md have, of sizes for two cores. A row may bring overrides of its own."""

from __future__ import annotations

import re

#: INRs: SIRENs of one shape
INRS = (
    "statnn",
    "mlp",
    "probe_mlp",
    "deep_set",
    "ng_gnn_small",
    "ng_gnn_small_plain",
    "ng_t_small",
    "ng_t_small encoder.probes=64",
    "gatv2",
    "gatv2 encoder.probes=0",
    "unf_inr",
    "unf_encoded encoder.fourier_features=16",
    "nfn_np_inr",
    "nfn_hnp_inr",
    "nft_small",
    "monomial",
    "monomial encoder.paths=8",
    "monomial_sign_small",
    "scale_gmn_small",
    "scale_gmn_small encoder.bidirectional=true",
    "canonical encoder@encoder.encoder=ng_gnn_small_plain",
    "canonical encoder@encoder.encoder=unf_inr",
    "canonical encoder@encoder.encoder=nfn_hnp_inr",
    "canonical encoder@encoder.encoder=statnn",
    "ng_gnn_small_plain sparsity=unifews",
)
#: trained networks whose success is to be predicted; encoders of one architecture refuse the mixed zoos
NETWORKS = (
    "statnn",
    "mlp",
    "probe_mlp encoder.probe_size=8",
    "deep_set",
    "ng_gnn_cnn_small",
    "ng_gnn_cnn_small encoder.probes=16 encoder.probe_size=8",
    "ng_t_small",
    "gatv2_cnn",
    "unf",
    "unf_encoded",
    "nfn_np",
    "nfn_hnp",
    "nft_small",
    "monomial",
    "monomial encoder.paths=8",
    "scale_gmn_cnn_small",
    "scale_gmn_cnn_small encoder.bidirectional=true",
    "canonical encoder@encoder.encoder=unf_encoded",
    "canonical encoder@encoder.encoder=statnn",
    "ng_gnn_cnn_small sparsity=unifews",
)
#: Unifews on a graph: half of the edges and weights go within 60 steps, then stay away
HALF = "sparsity=unifews sparsity.edge_target=0.5 sparsity.weight_target=0.5 sparsity.ramp=60 sparsity.freeze=100"
#: the nodes of one graph
NODES = (
    "gcn",
    "gat",
    "gatv2_node",
    "sage",
    "gin",
    "gcnii",
    "sgc",
    "appnp",
    "heat",
    f"gcn {HALF}",
    f"gatv2_node {HALF}",
)
#: the same with thousands of features, of which nearly all are zero
WORDS = tuple(
    row.replace(name, f"{name} encoder.read_sparse=true", 1) if name not in ("sgc", "appnp", "heat") else row
    for row, name in ((row, row.partition(" ")[0]) for row in NODES)
)
GRAPHS = ("amazon", "citeseer", "coauthor", "cora", "digits_graph", "pubmed")


def of_table(zoo: str) -> tuple[str, ...]:
    """The rows of the table for an option of the data group."""
    if zoo.startswith(GRAPHS):
        return WORDS if zoo.startswith("coauthor") else NODES
    return INRS if "inr" in zoo else NETWORKS


def folder(row: str) -> str:
    """The name of the folder of a row's runs."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", row)

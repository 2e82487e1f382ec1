"""Layers that prune what they do: message passing over kept edges, linear maps with masks (:mod:`wsl.sparsity`).

edge_set    the edges of one graph, sorted once, with their weights; subsets; one CSR product
sieve       what a layer keeps, in its state dict: EdgeSieve for messages, WeightSieve for weights
linear      nn.Linear with a mask
layers      GCN, GraphSAGE, GIN, GCNII as transform, sieve, product
attention   GATv2 with pruned attention

network_sieve      the same for graphs that differ from batch to batch (neural graphs): a rule, not a mask
network_attention  GATv2 on those
"""

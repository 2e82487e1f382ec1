"""Graph neural networks that classify the nodes of one graph: a stack of message-passing layers each.

    gcn      symmetrically normalised mean of the neighbours (Kipf, Welling, ICLR 2017)
    gat      attention with a fixed ranking of the neighbours (Veličković et al., ICLR 2018)
    gatv2    attention whose ranking depends on the node that asks, with closed-form gradients (Brody et al., ICLR 2022)
    sage     own features and the mean of the neighbours through two maps (Hamilton et al., NeurIPS 2017)

The layers are PyTorch Geometric's, but for gatv2.
"""

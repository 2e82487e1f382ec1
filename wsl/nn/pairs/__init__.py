"""Layers on pairs of nodes, compiled: what :mod:`wsl.nn.relational` runs where there is a C compiler.

kernels       which tensors they take; threads; attend and update as functions with gradients
attention.c   Σ_j α_ij v_ij and Σ_j α_ij e_ij
update.c      new states of pairs
tile.h        products and sums of a tile of pairs that lies in the cache
gelu.h
"""

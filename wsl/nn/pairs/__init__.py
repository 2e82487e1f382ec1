"""Layers on pairs of nodes, compiled: what :mod:`wsl.nn.relational` runs where there is a C compiler.

kernels        which tensors they take; widths, threads
attention      Σ_j α_ij v_ij and Σ_j α_ij e_ij as a function with gradients, and attention.c
update         new states of pairs, and update.c
tile.h, gelu.h products, sums and GELU of a tile of pairs that lies in the cache
"""

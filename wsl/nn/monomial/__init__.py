"""Layers that respect permutation together with positive scaling (ReLU) and sign (tanh, sine) of hidden neurons.

Multiplying hidden neuron j of a label a by d_a(j) multiplies an entry of a weight tensor by a product of powers of such
factors, its *character*. An equivariant linear map may send an entry only to entries of the same character; an
invariant may divide the character out, or forget it where it is a sign (Tran et al., "Monomial Matrix Group Equivariant
Neural Functional Networks", NeurIPS 2024).
"""

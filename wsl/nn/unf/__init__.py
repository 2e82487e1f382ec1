"""Universal neural functionals: equivariant layers for any weight space."""

"""The contract of every encoder: a spec and a batch of weights in, features out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.errors import UserError
from wsl.nn.standardize import Standardize
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class UnsupportedSpecError(UserError, ValueError):
    """An encoder cannot take a spec; the message is one sentence that says why."""


class Encoder(nn.Module):
    """Reads the weights of networks.

    An *invariant* encoder returns one feature vector per network, ``[B, out_features]``; an *equivariant* one returns a
    field over the parameters, ``[B, P, out_features]``, in the layout of its input. The constructor's signature, after
    ``spec`` and ``out_features``, is the schema of the encoder's config group: annotate every option with its type and
    range (:mod:`wsl.ranges`), give it a default, and explain it under ``Args``.

    Attributes:
        symmetries: what the encoder respects of (permutation, scaling, sign, phase), wherever the spec has it.
        equivariant: whether the output is a field over the parameters.
        reads: the types of description that it can be built for; an encoder of mixed zoos adds
            :class:`~wsl.spec.family.SpecFamily` and is given :class:`~wsl.batch.MixedWeightBatch` too.
        unread_parameters: names that :meth:`unread` gave, where the program has asked before training.
        spec: what it was built for.
        out_features: number of features returned.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset()
    equivariant: bool = False
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec,)
    unread_parameters: tuple[str, ...] = ()

    def __init__(self, spec: WeightSpec | SpecFamily, out_features: int) -> None:
        super().__init__()
        self.spec: Any = spec  # of one of the types in ``reads``
        self.out_features = out_features

    def forward(self, batch: WeightBatch) -> Tensor:
        raise NotImplementedError

    def fit_statistics(self, batch: WeightBatch) -> None:
        """Set buffers that depend on the training data (means, scales) from a large batch of it, once, before training.

        Encoders without such buffers do nothing.
        """

    def unread(self, batch: WeightBatch) -> tuple[str, ...]:
        """Names of the parameters on which the output for such networks does not depend.

        They get no gradient and stay as they were initialised; several ranks must know, for they would wait for it.
        """
        named = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        was_training = self.training
        self.eval()
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                output = self(batch)
                if not output.requires_grad:
                    return tuple(named)
                found = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
        finally:
            self.train(was_training)
        return tuple(name for name, gradient in zip(named, found, strict=True) if gradient is None)

    def check_spec(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Raise ValueError if the batch holds networks of another spec than the encoder was built for."""
        held = (batch.spec,) if isinstance(batch, WeightBatch) else batch.specs
        known = self.spec if isinstance(self.spec, SpecFamily) else specs_of(self.spec)
        if other := [spec for spec in held if spec not in known]:
            raise ValueError(f"this encoder was built for {self.spec!r}, the batch holds {other[0]!r}")

    def of_no_networks(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        """What the encoder returns for a batch without networks: no features, or a field without values."""
        shape = batch.values.shape[:-1] if self.equivariant else (0,)
        return batch.values.new_zeros(*shape, self.out_features)


class StandardizingEncoder(Encoder):
    """An encoder whose input may be standardised, with one mean and deviation for each parameter tensor.

    Attributes:
        standardize: the statistics, or None to read raw values; set by the subclass.
    """

    standardize: Standardize | None

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Set mean and deviation of each parameter tensor from training data."""
        if self.standardize is not None:
            self.standardize.fit(batch)

    def standardized(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        """What the encoder reads, of a batch that it was built for: values ``[B, P, C]``, or ``[ΣP, C]`` if mixed."""
        self.check_spec(batch)
        if self.standardize is None:
            return batch.values
        return self.standardize(batch.values) if isinstance(batch, WeightBatch) else self.standardize.flat(batch)

"""Canonical weights before any encoder: what it did not know of scale, sign and phase, it need not know."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from wsl.batch import WeightBatch
from wsl.canonical import CANONICAL, canonicalise
from wsl.encoders.wrapper import MakeEncoder, Wrapper
from wsl.spec import WeightSpec
from wsl.symmetry import act, inverse


class Canonical(Wrapper):
    """f(w) = encoder(c(w)), or, equivariant, g(w)⁻¹ · encoder(c(w)), where g(w) takes w to its canonical form c(w).

    One representative of every orbit under positive scaling, sign and sine phase is chosen neuron by neuron
    (:mod:`wsl.canonical` also says what happens to zero rows and ties), and permutations stay as they are. So an
    encoder that respects permutations, such as NG-GNN or UNF, respects the removed symmetries as well. Its field is
    mapped back like a difference of weights: half turns of a sine move signs, not biases.

    The canonical form is continuous but where a sign or a phase is chosen (a row that sums to zero, a bias at half a
    period) and where a row vanishes; :class:`~wsl.encoders.monomial.Monomial` has no such places.

    Args:
        spec: what the networks share.
        out_features: number of features returned.
        encoder: the encoder that reads canonical weights.
        remove: the symmetries to remove, each on the hidden labels that have it.

    Shapes: those of the inner encoder, for C = 1.

    Raises:
        SpecError: if a label has a symmetry but no tensor of its own by which to fix it.
    """

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        encoder: MakeEncoder,
        remove: tuple[Literal["scaling", "sign", "phase"], ...] = ("scaling", "sign", "phase"),
    ) -> None:
        super().__init__(spec, out_features, encoder)
        self.remove = tuple(name for name in CANONICAL if name in remove)
        self.symmetries = self.encoder.symmetries | set(self.remove)  # type: ignore[misc]  # what the inner one adds

    def prepared(self, batch: WeightBatch) -> WeightBatch:
        """The canonical weights."""
        return canonicalise(batch, self.remove)[0]

    def forward(self, batch: WeightBatch) -> Tensor:
        self.check_spec(batch)
        canonical, element = canonicalise(batch, self.remove)
        out = self.encoder(canonical)
        return act(inverse(element), canonical.with_values(out), shift=False).values if self.equivariant else out

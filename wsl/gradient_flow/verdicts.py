"""From readings to plain words: what is wrong, where, and what to try.

One odd reading is noise. A verdict needs three of the last five readings of a quantity at a place.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

WINDOW, NEEDED = 5, 3


@dataclass(frozen=True)
class Rule:
    """``sick(value, median of the readings before it)`` says that a reading of ``quantity`` shows the symptom.

    ``words`` may use {value}; ``advice`` is what to try first.
    """

    quantity: str
    symptom: str
    sick: Callable[[float, float], bool]
    words: str
    advice: str


@dataclass(frozen=True)
class Verdict:
    """``symptom`` at ``place`` (a layer or parameter), seen in ``count`` of the last readings of ``quantity``."""

    symptom: str
    place: str
    quantity: str
    value: float
    count: int
    words: str
    advice: str

    def __str__(self) -> str:
        return f"{self.place}: {self.symptom}: {self.words}. Try: {self.advice}"


DEEP = "init=balanced, norm=layer, residual=true or fewer layers"
SLOWER = "a lower optimizer.lr, a longer warm-up, or trainer.gradient_clip_val"
SOFTER = "score=softplus, whose slope differs from edge to edge, or direct=theta_n, a term outside the softmax"
RULES = (
    Rule(
        "gradient_rms",
        "vanishing",
        lambda v, median: v < 1e-8 or v < 1e-3 * median,
        "its gradient is {value:.1e} per entry, next to nothing or far below what it was",
        DEEP,
    ),
    Rule(
        "gradient_rms",
        "exploding",
        lambda v, median: not math.isfinite(v) or v > 100 * median,
        "its gradient is {value:.1e} per entry, far above what it was",
        SLOWER,
    ),
    Rule(
        "relative_gradient",
        "vanishing",
        lambda v, _: v < 1e-6,
        "its gradient is {value:.1e} of its size: it hardly hears the loss",
        DEEP,
    ),
    Rule("relative_gradient", "exploding", lambda v, _: v > 10, "its gradient is {value:.1e} times its size", SLOWER),
    Rule(
        "relative_update",
        "frozen",
        lambda v, _: v < 1e-6,
        "a step changes it by {value:.1e} of its size",
        "a higher optimizer.lr, or look for vanishing gradients",
    ),
    Rule(
        "relative_update",
        "learning rate too high",
        lambda v, _: v > 0.1,
        "a step changes it by {value:.1e} of its size; 1e-3 is usual",
        SLOWER,
    ),
    Rule(
        "depth_factor",
        "vanishing",
        lambda v, _: v < 0.1,
        "gradients shrink to {value:.1e} per layer on their way to the input",
        DEEP,
    ),
    Rule(
        "depth_factor",
        "exploding",
        lambda v, _: v > 10,
        "gradients grow {value:.1e} times per layer on their way to the input",
        DEEP,
    ),
    Rule(
        "depth_ratio",
        "vanishing",
        lambda v, _: v < 1e-3,
        "the first layer's gradient is {value:.1e} of the last one's",
        DEEP,
    ),
    Rule(
        "depth_ratio",
        "exploding",
        lambda v, _: v > 1e3,
        "the first layer's gradient is {value:.1e} times the last one's",
        DEEP,
    ),
    Rule(
        "jacobian_gain",
        "vanishing",
        lambda v, _: v < 0.1,
        "it passes {value:.1e} of a gradient on to the layer before",
        DEEP,
    ),
    Rule(
        "jacobian_gain",
        "exploding",
        lambda v, _: v > 10,
        "it passes gradients on {value:.1e} times as large",
        "a smaller initialisation, norm=layer, or trainer.gradient_clip_val",
    ),
    Rule(
        "same_sign",
        "dead query",
        lambda v, _: v > 0.95,
        "{value:.0%} of the queries see scores of one sign only, from which the target map learns nothing",
        SOFTER,
    ),
    Rule(
        "low_degree",
        "dead query",
        lambda v, _: v > 0.95,
        "{value:.0%} of the nodes have at most one incoming edge: attention has no choice to make",
        "self loops, reverse edges, or direct=theta_n",
    ),
    Rule(
        "query_ratio",
        "dead query",
        lambda v, _: v < 1e-4,
        "the target map gets {value:.1e} of the source map's gradient",
        SOFTER,
    ),
    Rule(
        "query_ratio",
        "exploding",
        lambda v, _: v > 10,
        "the target map gets {value:.1e} times the source map's gradient",
        SLOWER,
    ),
    Rule(
        "entropy",
        "unused attention",
        lambda v, _: v > 0.999,
        "attention is uniform ({value:.4f} of the largest entropy): a plain mean would do",
        "fewer layers, a larger optimizer.lr, or score=softplus; or encoder=sage",
    ),
    Rule(
        "path_ratio",
        "unused attention",
        lambda v, _: v < 1e-4,
        "the scores carry {value:.1e} of the gradient of the messages",
        SOFTER,
    ),
    Rule(
        "path_ratio",
        "exploding",
        lambda v, _: v > 10,
        "the scores carry {value:.1e} times the gradient of the messages",
        SLOWER,
    ),
    Rule(
        "entropy",
        "saturated attention",
        lambda v, _: v < 0.02,
        "each node listens to one neighbour ({value:.4f} of the largest entropy)",
        "weight decay, attention_dropout, or normalised inputs",
    ),
    Rule(
        "saturated",
        "saturated attention",
        lambda v, _: v > 0.9,
        "{value:.0%} of the softmaxes pass no gradient",
        "weight decay, attention_dropout, or normalised inputs",
    ),
    Rule(
        "value_contrast",
        "over-smoothed",
        lambda v, _: v < 1e-4,
        "the neighbours of a node can hardly be told apart (contrast {value:.1e})",
        "fewer layers, residual=true, or direct=theta_n",
    ),
    Rule(
        "balance",
        "unbalanced",
        lambda v, _: abs(v) > 0.95,
        "one side of the two layers holds nearly all of the weight ({value:+.2f}), and hardly moves",
        "init=balanced",
    ),
    Rule(
        "direction",
        "learning rate too high",
        lambda v, _: v < -0.9,
        "successive gradients point against each other (cosine {value:+.2f})",
        SLOWER,
    ),
    Rule(
        "conservation",
        "wrong gradients",
        lambda v, _: v > 1e-2,
        "the conservation law between the two layers is broken by {value:.1e}",
        "report this as a fault of the backward pass",
    ),
    Rule(
        "shift",
        "wrong gradients",
        lambda v, _: v > 1e-2,
        "the gradients of a softmax's logits add up to {value:.1e} of the largest one instead of 0",
        "report this as a fault of the backward pass",
    ),
)


@dataclass
class History:
    """Readings by quantity and place: (step, value), in order. A reading that is not applicable (NaN) is not kept."""

    readings: dict[str, dict[str, list[tuple[int, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, step: int, readings: Mapping[str, Mapping[str, float]]) -> None:
        """Readings ``{quantity: {place: value}}`` of one step."""
        for quantity, places in readings.items():
            for place, value in places.items():
                if not math.isnan(value):
                    self.readings[quantity][place].append((step, value))

    def verdicts(self) -> list[Verdict]:
        """What three of the last five readings agree on, in the order of the rules."""
        found = []
        for rule in RULES:
            for place, series in self.readings.get(rule.quantity, {}).items():
                values = [value for _, value in series]
                if count := _count(rule, values):
                    words = rule.words.format(value=values[-1])
                    found.append(Verdict(rule.symptom, place, rule.quantity, values[-1], count, words, rule.advice))
        return found


def _count(rule: Rule, values: list[float]) -> int:
    """Of the last readings how many show the symptom; 0 if too few do."""
    first = max(0, len(values) - WINDOW)
    sick = [rule.sick(values[n], statistics.median(values[:n] or [values[n]])) for n in range(first, len(values))]
    return sum(sick) if sum(sick) >= NEEDED else 0

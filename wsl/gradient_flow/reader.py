"""All readings of a model in one training step; needs torch alone.

reader = FlowReader(model)
reader.attach()                               before the forward pass
loss = …                                      readings = reader.before_backward(generator)
loss.backward()                               readings |= reader.after_backward()
optimizer.step()                              readings |= reader.after_step()
reader.detach()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wsl.gradient_flow import conservation, steps
from wsl.gradient_flow.attention import SwitchedProbe, attention_readings
from wsl.gradient_flow.layers import layers_of, places_of
from wsl.nn.gatv2_conv import GATv2Conv

#: {quantity: {place: value}}
Readings = dict[str, dict[str, float]]


class FlowReader:
    """Reads gradients, updates, Jacobian gains and attention of ``model`` by place: a parameter, a layer, the rest.

    Attributes:
        layers: the stack that the model is made of; see :func:`wsl.gradient_flow.layers.layers_of`.
        places: {layer or outer module: names of its trainable parameters}.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers, self.places = layers_of(model), places_of(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._pairs: tuple[tuple[str, str], ...] = getattr(model, "conserved_pairs", ())
        self._forget()

    def _forget(self) -> None:
        self._passed: dict[str, tuple[Tensor, Tensor]] = {}
        self._probes: dict[str, SwitchedProbe] = {}
        self._hooks: list[Any] = []
        self._before: dict[str, Tensor] = {}

    @property
    def stepping(self) -> bool:
        """Whether gradients have been read, so that a step is to follow."""
        return bool(self._before)

    def is_parameter(self, place: str) -> bool:
        return place in self._parameters

    def attach(self) -> None:
        """Watch the layers during the next forward and backward pass."""
        for name, layer in self.layers.items():
            self._hooks.append(layer.register_forward_hook(self._remember(name)))
            if isinstance(layer, GATv2Conv):
                layer.probe = self._probes[name] = SwitchedProbe()

    def detach(self) -> None:
        """Stop watching, and let go of everything that belongs to the step."""
        for hook in self._hooks:
            hook.remove()
        for name in self._probes:
            layer = self.layers[name]
            assert isinstance(layer, GATv2Conv)
            layer.probe = None
        self._forget()

    def before_backward(self, generator: torch.Generator, samples: int = 4) -> Readings:
        """D13, while the graph of the forward pass lives."""
        gains = {
            name: steps.jacobian_gain(output, source, generator, samples)
            for name, (source, output) in self._passed.items()
            if samples
        }
        for probe in self._probes.values():
            probe.on = True
        return {"jacobian_gain": gains}

    def after_backward(self) -> Readings:
        """D1, D2, D4, D5 to D12 and D15; copies the parameters for :meth:`after_step`."""
        self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        return self._gradient_readings(self.gradients()) | self._attention_readings()

    def after_step(self) -> Readings:
        """D3."""
        after = {name: self._parameters[name].detach() for name in self._before}
        return {"relative_update": self._by_place(self._before, after, steps.relative_update)}

    def gradients(self) -> dict[str, Tensor]:
        """Of the parameters that have one, by name."""
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def _remember(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            source, result = _first_floating(given), _first_floating(output)
            if source is not None and result is not None:
                self._passed[name] = source, result

        return hook

    def _gradient_readings(self, gradients: dict[str, Tensor]) -> Readings:
        rms = {place: steps.gradient_rms(gradient) for place, gradient in self._grouped(gradients).items()}
        sizes = {name: self._parameters[name].detach() for name in gradients}
        found = {
            "gradient_rms": {place: value if math.isfinite(value) else math.inf for place, value in rms.items()},
            "relative_gradient": self._by_place(gradients, sizes, steps.relative_gradient),
        }
        if len(self.layers) > 1:
            norms = [self._layer_norm(name, gradients) for name in self.layers]
            place = f"{next(iter(self.layers))} … {next(reversed(self.layers))}"
            factor = steps.depth_factor(norms)
            found |= {"depth_factor": {place: factor}, "depth_ratio": {place: factor ** (len(norms) - 1)}}
        return found

    def _layer_norm(self, layer: str, gradients: dict[str, Tensor]) -> float:
        """Of the source map of an attention layer, of all parameters of another one."""
        names = [f"{layer}.lin_l.weight"] if isinstance(self.layers[layer], GATv2Conv) else self.places[layer]
        return math.hypot(*(float(gradients[name].norm()) for name in names if name in gradients))

    def _attention_readings(self) -> Readings:
        found: Readings = {}
        for name, probe in self._probes.items():
            layer = self.layers[name]
            if probe.inner.readings and isinstance(layer, GATv2Conv):
                for quantity, value in attention_readings(layer, probe.inner).items():
                    found.setdefault(quantity, {})[name] = value
        for one, other in self._pairs:
            layer, following = self.layers[one], self.layers[other]
            if isinstance(layer, GATv2Conv) and isinstance(following, GATv2Conv):
                place = f"{one} → {other}"
                found.setdefault("conservation", {})[place] = conservation.residual(layer, following)
                found.setdefault("balance", {})[place] = conservation.balance_level(layer, following)
        return found

    def _grouped(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each place's tensors as one vector, and the tensors."""
        grouped = {
            place: [tensors[name].flatten() for name in names if name in tensors]
            for place, names in self.places.items()
        }
        return {place: torch.cat(parts) for place, parts in grouped.items() if parts} | tensors

    def _by_place(
        self, one: dict[str, Tensor], other: dict[str, Tensor], quantity: Callable[[Tensor, Tensor], float]
    ) -> dict[str, float]:
        """A relative quantity; of biases and the like, which grow from 0, only as a part of their layer."""
        one, other = self._grouped(one), self._grouped(other)
        places = [place for place in one if place in self.places or one[place].dim() > 1]
        return {place: quantity(one[place], other[place]) for place in places}


def _first_floating(given: Any) -> Tensor | None:
    """The first tensor of numbers that gradients can pass, of what a module takes or returns."""
    values = given if isinstance(given, tuple) else (given,)
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)

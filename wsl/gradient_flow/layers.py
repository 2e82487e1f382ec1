"""What a diagnostic calls a layer, and a place, in a model that it does not know."""

from __future__ import annotations

from torch import nn

from wsl.nn.gatv2_conv import GATv2Conv


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The stack that the model is made of, by name.

    Attention layers if there are any; else the members (with parameters) of the longest list of modules, outermost
    first; else all linear maps.
    """
    attention: dict[str, nn.Module] = {
        n: module for n, module in model.named_modules() if isinstance(module, GATv2Conv)
    }
    if attention:
        return attention
    lists = {
        name: [(f"{name}.{n}", member) for n, member in enumerate(module) if any(True for _ in member.parameters())]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    stacks = [name for name in lists if len(lists[name]) > 1]
    if stacks:
        return dict(lists[min(stacks, key=lambda name: (name.count("."), -len(lists[name])))])
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def places_of(model: nn.Module) -> dict[str, list[str]]:
    """The names of all trainable parameters, by the layer or else the outermost module that they belong to."""
    layers = layers_of(model)
    places: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = next((layer for layer in layers if name.startswith(f"{layer}.")), name.partition(".")[0])
            places.setdefault(layer, []).append(name)
    return places

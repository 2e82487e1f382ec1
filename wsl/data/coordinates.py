"""Move the image of an implicit neural representation: turn, shift and zoom by changing its first layer alone.

An INR f reads coordinates p. With p replaced by A p + t its first layer computes W(A p + t) + b, so

    W' = W A,    b' = b + W t,    f'(p) = f(A p + t)

exactly, whatever follows. Pushing the shift through deeper layers, as published code does, ignores the activation
between and gives another image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.errors import UserError
from wsl.spec import WeightSpec


class NoCoordinatesError(UserError, ValueError):
    """A network does not read coordinates in the plane; the message says why."""


def coordinate_table(spec: WeightSpec) -> Tensor:
    """``[n, 3]`` int64: where a row holds the bias of each first-layer neuron and its weights of x and of y.

    Raises:
        NoCoordinatesError: if the input is not two numbers, or is read by anything but linear layers with a bias.
    """
    rows = []
    for connection in spec.connections:
        if spec.label[spec.group[connection.source].label].kind != "input":
            continue
        parts, more = connection.tensors, connection.attributes
        if connection.kind != "linear" or set(parts) != {"weight", "bias"} or more.get("scale", 1) != 1:
            raise NoCoordinatesError(f"the input is read by {connection.kind!r}, not by a linear layer with a bias")
        weight = torch.from_numpy(spec.tensor[parts["weight"]].index())
        if weight.dim() != 2 or weight.shape[1] != 2:
            raise NoCoordinatesError(f"the input is {list(weight.shape[1:])} numbers, not a point in the plane")
        bias = torch.from_numpy(spec.tensor[parts["bias"]].index())
        rows.append(torch.cat([bias.unsqueeze(1), weight], dim=1))
    if not rows:
        raise NoCoordinatesError("no connection reads an input")
    return torch.cat(rows)


def check_coordinates(specs: Iterable[WeightSpec]) -> None:
    """Raises :class:`NoCoordinatesError` unless all networks read coordinates in the plane."""
    for spec in specs:
        try:
            coordinate_table(spec)
        except NoCoordinatesError as error:
            raise NoCoordinatesError(
                f"rotation, translation and zoom are for INRs of images, not for {spec!r}: {error}"
            ) from None


def plane_map(angle: Tensor, zoom: Tensor) -> Tensor:
    """A = zoom · rotation by ``angle`` (degrees), ``[B, 2, 2]``."""
    radians = angle * (math.pi / 180)
    cosine, sine = zoom * radians.cos(), zoom * radians.sin()
    return torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)], dim=-2)


def move_coordinates(batch: MixedWeightBatch, matrix: Tensor, shift: Tensor) -> MixedWeightBatch:
    """The networks f'(p) = f(A p + t), for A = ``matrix [B, 2, 2]`` and t = ``shift [B, 2]`` of each network.

    Raises:
        NoCoordinatesError: as :func:`coordinate_table`.
    """
    table, owner, _ = batch.tables(coordinate_table)
    places = table + batch.offsets[owner].unsqueeze(1)
    bias, weight = batch.values[places[:, 0]], batch.values[places[:, 1:]]
    turned = torch.einsum("nic,nij->njc", weight, matrix[owner].to(weight))
    moved = bias + torch.einsum("nic,ni->nc", weight, shift[owner].to(weight))
    values = batch.values.index_copy(0, places[:, 0], moved)
    return batch.with_values(values.index_copy(0, places[:, 1:].flatten(), turned.flatten(0, 1)))

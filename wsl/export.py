"""A trained encoder as two plain files: tensors in safetensors, everything else in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from wsl import __version__, plain_json
from wsl.config import ConfigError
from wsl.encoders.base import Encoder
from wsl.run_folder import write_bytes, write_text

#: of ``model.json``; cards without a number are of the first
VERSION = 1


def save_encoder(encoder: Encoder, config: dict[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.json`` into the folder.

    Args:
        config: the encoder's config group (``name`` and options).
    """
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in encoder.state_dict().items()}
    write_bytes(folder / "model.safetensors", safetensors.torch.save(state))
    card = {
        "format": "wsl-encoder",
        "version": VERSION,
        "wsl": __version__,
        "encoder": config,
        "out_features": encoder.out_features,
        "spec": encoder.spec.to_dict(),
    }
    write_text(folder / "model.json", json.dumps(card, indent=1) + "\n")


def read_encoder_card(folder: Path) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """(spec as plain values, out_features, config group) of an exported encoder.

    Raises:
        ConfigError: if ``model.json`` is absent or not of this format.
    """
    path = folder / "model.json"
    try:
        card = plain_json.load(path.read_text())
        if card.get("format") != "wsl-encoder":
            raise ConfigError(f"{path} is not an exported encoder (format {card.get('format')!r})")
        if (version := card.get("version", 1)) != VERSION:
            raise ConfigError(
                f"{path} is of version {version}, written by release {card.get('wsl')}; this release, {__version__}, "
                f"reads version {VERSION}: use that release, or export the encoder again"
            )
        return dict(card["spec"]), int(card["out_features"]), dict(card["encoder"])
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as an exported encoder: {error}") from None

"""The zoo file: many trained networks with labels in one HDF5 file (layout: :mod:`wsl.zoo.layout`)."""

from wsl.zoo.layout import ZooError
from wsl.zoo.reader import Zoo
from wsl.zoo.writer import ZooWriter

__all__ = ["Zoo", "ZooError", "ZooWriter"]

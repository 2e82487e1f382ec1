"""Published zoos, and folders of checkpoints, as zoo files: one module for each layout.

A layout's function looks at the source and returns a :class:`~wsl.zoo.importers.source.Source`: which networks there
are, their labels, runs and splits, and how one is read. :func:`~wsl.zoo.importers.transfer.import_zoo` does the rest
for all of them: it checks every network, then streams them into the file.
"""

from wsl.zoo.importers.source import FaultyNetworkError, Network, Source
from wsl.zoo.importers.transfer import Policies, import_zoo

__all__ = ["FaultyNetworkError", "Network", "Policies", "Source", "import_zoo"]

"""One module per benchmark; each has ``run() -> Report``."""

"""Measure speed and memory against references: ``python scripts/benchmark.py NAME [--json FILE] [--threads N]``.

Times are medians of interleaved runs in one process, given as ratios against a reference that stands in the same file
and in matmul units: 1 unit = the median time of one 1024×1024 float32 ``torch.mm`` with the same threads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import benchmarks


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "measure")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    report = importlib.import_module(f"benchmarks.{args.name}").run()
    report.print()
    if args.json:
        args.json.write_text(json.dumps(report.figures | {"threads": args.threads}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

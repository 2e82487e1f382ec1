"""Take the tensors out of a checkpoint that is refused: ``python scripts/convert_checkpoint.py IN.pt OUT.safetensors``.

Files written with ``torch.save(module)`` and the like name classes that would be imported, and run, to load them. Here
they are not: each such object becomes an inert record of its fields, from which the tensors are collected under the
names that a state dict would give them. Nothing in the file is called. What cannot be read this way is not converted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.torch

from wsl.command_line import plain_errors
from wsl.state_dict.tensors import collected
from wsl.zoo.temporary import write_whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a file that torch.save wrote")
    parser.add_argument("target", type=Path, help="a .safetensors file to write")
    parser.add_argument("--under", default="", help="take only the tensors below this key, such as 'model'")
    args = parser.parse_args()
    if args.target.suffix != ".safetensors":
        parser.error(f"the target should end in .safetensors, not {args.target.suffix!r}")
    if args.target.exists():
        parser.error(f"{args.target} exists already; delete it or choose another name")
    with plain_errors():
        state = collected(args.source, args.under)
        write_whole(args.target, safetensors.torch.save(state))
    for name, tensor in state.items():
        print(f"{name:40} {list(tensor.shape)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

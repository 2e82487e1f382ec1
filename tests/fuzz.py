"""Mutated zoos and configs: either the error that users are shown, or exactly what an intact one gives.

``python tests/fuzz.py --seconds 60`` tries random mutations for a while and keeps the first of each new kind of answer
in tests/corpus, which tests/test_fuzz.py tries again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402

from wsl import run_config, run_folder  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.run_config import RunConfig  # noqa: E402
from wsl.spec import mlp_spec  # noqa: E402
from wsl.zoo import Zoo, ZooError, ZooWriter  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
#: (what is done, where as a share of the length, a number)
Edit = tuple[str, float, int]
EDITS = ("flip", "set", "cut", "drop", "repeat", "word")
#: words of eight bytes that sizes and addresses are made of
WORDS = (0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 2**40)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    out = bytearray(data)
    for kind, share, number in edits:
        place = min(int(share * len(out)), len(out) - 1)
        if kind == "flip":
            out[place] ^= 1 << number % 8
        elif kind == "set":
            out[place] = number % 256
        elif kind == "cut":
            del out[max(place, 1) :]
        elif kind == "drop":
            del out[max(place, 1) : place + 1 + number % 64]
        elif kind == "repeat":
            out[place:place] = out[place : place + 1 + number % 64]
        else:
            out[place : place + 8] = WORDS[number % len(WORDS)].to_bytes(8, "little")
    return bytes(out)


def random_edits(rng: random.Random) -> list[Edit]:
    return [(rng.choice(EDITS), rng.random(), rng.randrange(2**16)) for _ in range(rng.choice((1, 1, 2, 4)))]


def write_zoo(path: Path) -> bytes:
    spec, rows = mlp_spec((2, 3, 2), "relu"), 12
    with ZooWriter(path, [spec], rows, {"kind": "fuzz"}) as zoo:
        zoo.write(0, np.random.default_rng(0).normal(size=(rows, spec.numel)).astype(np.float32))
        zoo.set_columns({"label": np.arange(rows) % 3})
        zoo.set_splits({"train": np.arange(8), "val": np.arange(8, 10), "test": np.arange(10, 12)})
    return path.read_bytes()


def zoo_answer(path: Path, digest: str) -> str:
    """What the reader says; an error of another type, or content that has changed, is a failure."""
    try:
        with Zoo(path) as zoo:
            assert zoo.content_digest() == zoo.digest == digest, "changed content was read"
    except ZooError as error:
        return shape_of(str(error).removeprefix(str(path)))
    return "intact"


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**70, 1e308, float("nan"), float("-inf"), "", "a", "../../x", "os.system", "${oc.env:HOME}",
    [], [[]], {}, {"_target_": "os.system"}, ["a", 1], "\0", "é" * 300, [None] * 50,
)  # fmt: skip


def config_values() -> dict[str, Any]:
    """Of a whole run, as they stand in its config.yaml."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        return run_config.config(compose("train", ["compare=[statnn]", "logger=csv"])).plain()


def changed(values: dict[str, Any], change: tuple[list[str], Any]) -> dict[str, Any]:
    """A copy with another value at a path of keys, or a key more."""
    out = copy.deepcopy(values)
    keys, value = change
    inner: Any = out
    for key in keys[:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[keys[-1]] = value
    return out


def random_change(rng: random.Random, values: dict[str, Any]) -> tuple[list[str], Any]:
    keys: list[str] = []
    inner: Any = values
    while isinstance(inner, dict) and inner and (not keys or rng.random() < 0.8):
        keys.append(rng.choice(list(inner)))
        inner = inner[keys[-1]]
    if rng.random() < 0.2:
        keys[-1] = rng.choice(("_target_", "_args_", "name", "widht", "", "a.b", "__class__"))
    return keys, rng.choice(VALUES)


def config_answer(folder: Path, values: Any) -> str:
    """What is said of a run folder with this config; nothing but a config, or an error that users are shown."""
    run_folder.write_config(folder, values)
    return text_answer(folder)


def text_answer(folder: Path) -> str:
    try:
        with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
            assert isinstance(run_config._resumed(folder, []), RunConfig)
    except UserError as error:
        return shape_of(str(error).replace(str(folder), ""))
    return "taken"


def shape_of(message: str) -> str:
    """The kind of an answer: what is wrong, without keys, numbers and quotations."""
    wrong = message.splitlines()[0].rsplit(": ", 1)[-1]
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\w.+]*", "#", wrong)[:30]


def keep(name: str, answer: Callable[[Any], str], draw: Callable[[], Any], seconds: float) -> None:
    path = CORPUS / f"{name}.json"
    corpus: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        drawn = draw()
        try:
            corpus.setdefault(answer(drawn), drawn)
        except Exception:
            print(f"{name}: not answered: {drawn!r}")
            raise
        tried += 1
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(drawn)}" for kind, drawn in sorted(corpus.items()))
    path.write_text(f"{{\n{lines}\n}}\n")
    print(f"{name}: {tried} tried, {len(corpus)} kinds of answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        good = write_zoo(folder / "zoo.h5")
        digest = Zoo(folder / "zoo.h5").digest
        mutated = folder / "mutated.h5"

        def of_zoo(edits: list[Edit]) -> str:
            mutated.write_bytes(edited(good, edits))
            return zoo_answer(mutated, digest)

        keep("zoo", of_zoo, lambda: random_edits(rng), args.seconds / 3)
        values = config_values()
        run = folder / "run"
        draw = functools.partial(random_change, rng, values)
        keep("config", lambda change: config_answer(run, changed(values, change)), draw, args.seconds / 3)
        run_folder.write_config(run, values)
        text = (run / "config.yaml").read_bytes()

        def of_text(edits: list[Edit]) -> str:
            (run / "config.yaml").write_bytes(edited(text, edits))
            return text_answer(run)

        keep("config_text", of_text, lambda: random_edits(rng), args.seconds / 3)


if __name__ == "__main__":
    main()

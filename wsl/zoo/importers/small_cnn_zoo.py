"""The Small CNN Zoo of Unterthiner et al., "Predicting Neural Network Accuracy from Weights" (data: CC-BY 4.0).

    weights.npy       float [rows, 4970], memory-mapped        metrics.csv.gz    one line for each row
    layout.csv        varname, start_idx, end_idx, shape       *_split.csv       a fixed order of the rows (nfn)

Keras stores kernels as (height, width, in, out) and dense layers as (in, out); rows are turned to (out, in, …).

The protocol of nfn, which the others follow: put the rows in the order of the split file, whose first line "0" is a
stray column header that its reader takes for a row; keep the last checkpoints (step 86); the second half is the test
split, the first half is shuffled by ``random.Random(0)`` and divided 80/20 into train and val. Monomial-NFN keeps one
activation before splitting, ScaleGMN after it.
"""

from __future__ import annotations

import csv
import gzip
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsl.spec import WeightSpec
from wsl.zoo.importers.networks import ACTIVATIONS, Architecture, Conv, common_names, spec_of
from wsl.zoo.importers.source import Array, FaultyNetworkError, Network, Source, numbered
from wsl.zoo.layout import ZooError

LAST_STEP = 86
ROWS_AT_ONCE = 4096  # after so many the file is mapped anew, so that pages that were read do not pile up
COLUMNS = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
SETTINGS = ("optimizer", "w_init", "b_init", "learning_rate", "dropout", "init_std", "l2reg", "train_fraction")
TEXT = ("activation", "optimizer", "w_init", "b_init")


def small_cnn_zoo(
    folder: Path,
    split_file: Path | None = None,
    header_line: Literal["keep", "drop"] = "keep",
    step: int | None = LAST_STEP,
    activation: Literal["relu", "tanh", "both"] = "both",
    keep_activation: Literal["before", "after"] = "before",
    side: int = 32,
) -> Source:
    """One of the four zoos.

    Args:
        folder: holds weights.npy, metrics.csv.gz and layout.csv.
        split_file: the order of the rows; None: the order of the file.
        header_line: ``keep`` reads the split file's first line as a row, which reproduces the published splits.
        step: keep the checkpoints of this epoch; None: all, of which each is in the split of its run.
        activation: keep the networks with this one. keep_activation: ``before`` or ``after`` splitting.
        side: of the images, 32 or, for MNIST and Fashion-MNIST, 28.

    Raises:
        ZooError: if a file is missing or damaged, or they do not agree with each other.
    """
    weights = _Weights(folder / "weights.npy")
    metrics = _Metrics.read(folder / "metrics.csv.gz", len(weights))
    parts, index = _layout(folder / "layout.csv", weights.width)
    order = np.arange(len(weights)) if split_file is None else _order(split_file, header_line, len(weights))
    split = _split(metrics, order, activation, keep_activation)
    wanted = metrics.has(activation) & (np.ones(len(weights), bool) if step is None else metrics.step == step)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        raise ZooError(
            f"{folder}: no row has step {step} and activation {activation}; steps: {np.unique(metrics.step)}"
        )
    specs = {name: _spec(parts, name, side) for name in sorted({str(a) for a in metrics.activation[rows]})}

    def read(number: int) -> Network:
        row = int(rows[number])
        return Network(specs[str(metrics.activation[row])], weights[row][index])

    return Source(
        root=folder,
        recipe={
            "reference": "Unterthiner et al. 2020, Predicting Neural Network Accuracy from Weights",
            "licence": "CC-BY 4.0",
            "input_shape": [1, side, side],
            "split": {
                "file": split_file.name if split_file else "none: the order of the rows",
                "header_line": header_line,
                "activation": activation,
                "kept": f"{keep_activation} splitting",
                "seed": "random.Random(0)",
            },
            "step": step,
            "convention": "kernels (h, w, in, out) and matrices (in, out) were turned to (out, in, h, w) and (out, in)",
        },
        names=_Names(rows),
        read=read,
        run_ids=metrics.run[rows],
        splits=metrics.splits(rows, split, by_run=step != metrics.step.max()),
        columns={name: values[rows] for name, values in metrics.columns().items()} | {"source_row": rows},
    )


class _Names(Sequence[str]):
    """Names of rows, made when they are needed."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        return f"weights.npy row {self.rows[number]}"


class _Weights:
    """Rows of weights.npy, of which only those that are read come into memory."""

    def __init__(self, path: Path) -> None:
        self.path, self._reads = path, 0
        self._map = self._open()
        if self._map.ndim != 2 or self._map.dtype.kind != "f":
            raise ZooError(f"{path}: expected floats [rows, parameters], got {self._map.dtype} {self._map.shape}")

    def _open(self) -> Array:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ZooError(f"{self.path}: missing or truncated ({error}); download it again") from error

    def __len__(self) -> int:
        return len(self._map)

    @property
    def width(self) -> int:
        return int(self._map.shape[1])

    def __getitem__(self, row: int) -> Array:
        self._reads += 1
        if self._reads % ROWS_AT_ONCE == 0:
            self._map = self._open()
        return np.asarray(self._map[row], dtype=np.float32)


@dataclass
class _Metrics:
    """metrics.csv.gz, of each row."""

    step: Array
    run: Array
    activation: Array
    values: Mapping[str, Array]

    @classmethod
    def read(cls, path: Path, rows: int) -> _Metrics:
        steps, runs = list[int](), list[str]()
        texts: dict[str, list[str]] = {}
        for number, line in enumerate(_lines(path)):
            try:
                steps.append(int(float(line["step"])))
                runs.append(line["modeldir"])
                for name in (*COLUMNS, *(f"config.{setting}" for setting in ("activation", *SETTINGS))):
                    if name in line:
                        texts.setdefault(name.removeprefix("config."), []).append(line[name])
            except (KeyError, TypeError, ValueError) as error:
                raise ZooError(f"{path}: line {number + 2} is damaged ({error!r}); download it again") from error
        if len(steps) != rows:
            raise ZooError(f"{path}: has {len(steps)} lines, weights.npy {rows} rows; one of them is not complete")
        for name in ("activation", "test_accuracy"):
            if len(texts.get(name, ())) != rows:
                raise ZooError(f"{path}: lacks the column {name!r}")
        values = {name: _column(path, name, column) for name, column in texts.items() if len(column) == rows}
        return cls(np.array(steps), numbered(runs), values.pop("activation"), values)

    def has(self, activation: str) -> Array:
        """Rows with this activation, or with any."""
        return np.ones(len(self.step), bool) if activation == "both" else self.activation == activation

    def columns(self) -> dict[str, Array]:
        return dict(self.values) | {"step": self.step, "activation": self.activation}

    def splits(self, rows: Array, split: Mapping[str, Array], by_run: bool) -> dict[str, Array]:
        """Numbers among ``rows`` of each split, in the published order; by run: all checkpoints of its runs."""
        if by_run:
            return {name: np.flatnonzero(np.isin(self.run[rows], self.run[mine])) for name, mine in split.items()}
        place = np.full(len(self.step), -1)
        place[rows] = np.arange(len(rows))
        return {name: place[mine][place[mine] >= 0] for name, mine in split.items()}


def _lines(path: Path) -> Iterator[Mapping[str, str]]:
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as stream:
            yield from csv.DictReader(stream)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path}: missing or truncated ({error}); download it again") from error


def _column(path: Path, name: str, texts: list[str]) -> Array:
    if name in TEXT:
        return np.array(texts)
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except (TypeError, ValueError) as error:
        raise ZooError(f"{path}: column {name!r} holds no numbers ({error})") from error


# -- layout -----------------------------------------------------------------------------------------------------------


def _layout(path: Path, width: int) -> tuple[list[tuple[int, ...]], Array]:
    """Shapes (out, in, …) and (out,) of the tensors in the order of a row here, and where each value lies there."""
    entries: dict[str, dict[str, Array]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                layer, _, part = line["varname"].rpartition("/")
                shape = [int(size) for size in line["shape"].strip("()[] ").split(",") if size.strip()]
                position = np.arange(int(line["start_idx"]), int(line["end_idx"])).reshape(shape)
                if part not in ("kernel:0", "bias:0"):
                    raise ZooError(f"{path}: variable {line['varname']!r} is neither kernel:0 nor bias:0")
                entries.setdefault(layer, {})[part] = position
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(f"{path}: missing or damaged ({error!r}); download it again") from error
    shapes, positions = list[tuple[int, ...]](), list[Array]()
    for layer, parts in entries.items():
        if set(parts) != {"kernel:0", "bias:0"}:
            raise ZooError(f"{path}: layer {layer!r} has {sorted(parts)}, expected a kernel and a bias")
        kernel = parts["kernel:0"]
        turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        for part in (turned, parts["bias:0"]):
            shapes.append(part.shape)
            positions.append(part.ravel())
    index = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
    if not np.array_equal(np.sort(index), np.arange(width)):
        raise ZooError(f"{path}: describes {len(index)} values, not each of the {width} of a row once")
    return shapes, index


def _spec(shapes: list[tuple[int, ...]], activation: str, side: int) -> WeightSpec:
    """Convolutions of stride 2 without padding, global average pooling, a dense layer."""
    if activation not in ACTIVATIONS:
        raise FaultyNetworkError(f"metrics.csv.gz: unknown activation {activation!r}")
    kernels = [shape for shape in shapes if len(shape) == 4]
    dense = [shape for shape in shapes if len(shape) == 2]
    convs = tuple(Conv(s[1], s[0], s[2], ACTIVATIONS[activation], stride=2) for s in kernels)
    linears = tuple((s[1], s[0]) for s in dense)
    names = common_names(len(convs), "conv.{}", ("dense",) if len(linears) == 1 else ())
    if len(linears) != 1 or not convs or any(s[2] != s[3] for s in kernels):
        raise ZooError(f"layout.csv: expected square convolutions and one dense layer, got {shapes}")
    return spec_of(Architecture(convs, linears, names, side=side))


# -- splits -----------------------------------------------------------------------------------------------------------


def _order(path: Path, header_line: str, rows: int) -> Array:
    try:
        order = np.array([int(line) for line in path.read_text(encoding="utf-8").split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise ZooError(f"{path}: no file of row numbers, one on each line ({error})") from error
    order = order if header_line == "keep" else order[1:]
    if not len(order) or order.min() < 0 or order.max() >= rows:
        raise ZooError(f"{path}: row numbers should lie between 0 and {rows - 1}; this is another zoo's split file")
    return order


def _split(metrics: _Metrics, order: Array, activation: str, keep: str) -> dict[str, Array]:
    """Rows of the last checkpoints in each split, in the published order."""
    order = order[metrics.step[order] == metrics.step.max()]
    if keep == "before":
        order = order[metrics.has(activation)[order]]
    half = int(0.5 * len(order))
    first = list(range(half))
    random.Random(0).shuffle(first)
    cut = int(0.8 * half)
    split = {"test": order[half:], "val": order[first[cut:]], "train": order[first[:cut]]}
    taken = np.zeros(len(metrics.step), dtype=bool)
    for name, mine in split.items():  # a row that the split file names twice stays where it is tested
        _, once = np.unique(mine, return_index=True)
        mine = mine[np.sort(once)]
        split[name] = mine[metrics.has(activation)[mine] & ~taken[mine]]
        taken[mine] = True
    return {name: split[name] for name in ("train", "val", "test")}

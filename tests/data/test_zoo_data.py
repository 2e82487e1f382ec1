"""The zoo's data module: which rows it serves, as which kind of batch, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specs import cnn_spec
from zoo_rows import network

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.config import schema_of
from wsl.data.augment import Augment
from wsl.data.zoo_data import ZooData
from wsl.spec.family import SpecFamily
from wsl.zoo import Zoo, ZooError


def data(path: Path, **options: Any) -> ZooData:
    return ZooData(path=str(path), **({"target": "test_accuracy"} | options))


def test_one_architecture_is_served_as_weight_batches(small_zoo: Path) -> None:
    module = ZooData(path=str(small_zoo))
    batch = module.dataset("val")[[3, 0]]
    assert isinstance(batch, WeightBatch) and batch.spec == module.spec
    with Zoo(small_zoo) as zoo:
        rows = module.rows["val"][[3, 0]]
        np.testing.assert_array_equal(batch.values.squeeze(-1).numpy(), zoo.read_rows(rows))
        np.testing.assert_array_equal(batch.target, zoo.column("label")[rows])
    assert batch.row_ids is not None and batch.row_ids.tolist() == rows.tolist()
    assert (module.classes, module.target_range) == (2, (0, 1))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("zoo", ["cnn_zoo", "varied_zoo"])
def test_several_architectures_are_served_as_mixed_batches(zoo: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(zoo)
    module = data(path, batch_size=7)
    assert isinstance(module.spec, SpecFamily) and module.classes == 0
    seen = []
    with Zoo(path) as source:
        assert module.spec.specs == source.specs
        accuracy = source.column("test_accuracy")
        for batch in module.train_dataloader():
            assert isinstance(batch, MixedWeightBatch) and batch.target is not None and batch.row_ids is not None
            for place, row in enumerate(batch.row_ids.tolist()):
                values, _, spec_ids = source.read_mixed(row, row + 1)
                np.testing.assert_array_equal(network(batch, place).numpy(), values)
                assert batch.specs[batch.spec_ids[place]] == source.specs[spec_ids[0]]
            np.testing.assert_array_equal(batch.target.numpy(), accuracy[batch.row_ids])
            seen += batch.row_ids.tolist()
    assert len(seen) == len(set(seen)) == 77 and set(seen) <= set(range(80))


def test_a_filter_that_leaves_one_architecture_gives_weight_batches(cnn_zoo: Path) -> None:
    module = data(cnn_zoo, where={"activation": "tanh", "epoch": None})
    assert module.spec == cnn_spec("tanh")
    with Zoo(cnn_zoo) as zoo:
        tanh = zoo.column("activation") == "tanh"
        for split, rows in module.rows.items():
            np.testing.assert_array_equal(rows, [r for r in zoo.splits[split] if tanh[r]])
            batch = module.dataset(split)[[0]]
            assert isinstance(batch, WeightBatch)
            np.testing.assert_array_equal(batch.values.flatten().numpy(), zoo.read_mixed_rows(rows[:1])[0])


def test_filters_add_up_and_take_lists(cnn_zoo: Path) -> None:
    with Zoo(cnn_zoo) as zoo:
        some = np.unique(zoo.column("test_accuracy")[:80])[:5].tolist()
        rounded = [round(value, 2) for value in some]  # as typed; the column is float32
        wanted = np.isin(zoo.column("test_accuracy"), some) & (zoo.column("epoch") == 1)
        module = data(cnn_zoo, where={"test_accuracy": [*rounded, *rest(zoo)], "epoch": 1})
        expected = [r for r in zoo.splits["train"] if wanted[r]]
    assert set(expected) <= set(module.rows["train"].tolist()) and all(r % 2 for r in module.rows["train"])


def rest(zoo: Zoo) -> list[float]:
    """Values that keep rows in val and test."""
    values = zoo.column("test_accuracy")
    return [round(float(values[row]), 2) for row in (81, 83, 101, 103)]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": "red"}, r"no column 'colour' for data\.where; it has activation, epoch, test_accuracy"),
        ({"activation": "gelu"}, r"no row has activation='gelu', .*activation is one of relu, tanh"),
        ({"activation": ["relu", "gelu"]}, "no row has activation='gelu'"),
        ({"activation": 1}, "no row has activation=1"),
        ({"epoch": "1"}, r"no row has epoch='1', .*epoch is one of 0, 1"),
        ({"epoch": 0.5}, r"no row has epoch=0\.5"),
        ({"test_accuracy": 2.0}, r"test_accuracy is one of .* and \d+ more"),
    ],
)
def test_filters_that_match_nothing_are_refused(cnn_zoo: Path, where: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        data(cnn_zoo, where=where)


def test_a_filter_that_empties_a_split_is_refused(cnn_zoo: Path) -> None:
    with Zoo(cnn_zoo) as zoo:
        values = zoo.column("test_accuracy")
        only_train = next(v for v in values[:80] if v not in values[80:])
    with pytest.raises(ZooError, match=r"no row of split 'val' is left by data\.where"):
        data(cnn_zoo, where={"test_accuracy": round(float(only_train), 2)})


def test_targets_are_numbers(cnn_zoo: Path, small_zoo: Path) -> None:
    module = data(cnn_zoo)
    assert module.target_range is not None and 0.1 <= module.target_range[0] < module.target_range[1] <= 1
    assert module.dataset("test")[[0]].target.dtype == torch.float32
    assert ZooData(path=str(small_zoo)).dataset("test")[[0]].target.dtype == torch.int64
    with pytest.raises(ZooError, match="column 'activation' is text"):
        data(cnn_zoo, target="activation")
    with pytest.raises(ZooError, match=r"no column 'loss'; data\.target is one of"):
        data(cnn_zoo, target="loss")


# -- in memory or from the file ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("zoo", ["small_zoo", "varied_zoo"])
def test_a_zoo_beyond_the_limit_is_read_from_the_file(zoo: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(zoo)
    target = "label" if zoo == "small_zoo" else "test_accuracy"
    held = data(path, batch_size=7, target=target)
    size = held.bytes / 2**30
    assert not held.streamed() and not data(path, memory_limit=size, target=target).streamed()
    module = data(path, batch_size=7, memory_limit=0.99 * size, buffer=1, target=target)
    assert module.streamed()
    for split, batches in (("train", module.train_dataloader()), ("val", module.val_dataloader())):
        by_row = {row: place for place, row in enumerate(module.rows[split].tolist())}
        seen = []
        for batch in batches:
            expected = held.dataset(split)[[by_row[row] for row in batch.row_ids.tolist()]]
            assert type(batch) is type(expected) and batch.target.dtype == expected.target.dtype
            assert torch.equal(batch.values, expected.values) and torch.equal(batch.target, expected.target)
            seen += batch.row_ids.tolist()
        assert len(set(seen)) == len(seen) == (len(by_row) // 7 * 7 if split == "train" else len(by_row))
    assert torch.equal(module.example().values, held.example().values)


def test_mixup_needs_the_rows_in_memory(small_zoo: Path) -> None:
    module = data(small_zoo, target="label", memory_limit=0, augment=schema_of("", Augment)(mixup=0.2))
    with pytest.raises(ZooError, match=r"mixup draws partners.*data\.memory_limit"):
        module.train_dataloader()

"""Batches: virtual tensors are the right values, state dicts go round, mixed batches keep every network's own."""

from __future__ import annotations

import pytest
import torch
from specs import attention_spec, gru_spec
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch, _Tables, ragged
from wsl.spec import WeightSpec, mlp_spec


def numbered(spec: WeightSpec, size: int = 2, channels: int = 1) -> WeightBatch:
    values = torch.arange(size * spec.numel * channels, dtype=torch.float32)
    return WeightBatch(spec, values.reshape(size, spec.numel, channels))


def test_gates_are_views_of_the_stored_tensors() -> None:
    spec = gru_spec(inputs=3, hidden=5, outputs=2)
    batch = numbered(spec)
    state = batch.state_dict(1)
    for gate, name in enumerate(("reset", "update", "new")):
        rows = slice(5 * gate, 5 * (gate + 1))
        for stored in ("gru.weight_ih_l0", "gru.weight_hh_l0", "gru.bias_ih_l0", "gru.bias_hh_l0"):
            assert torch.equal(batch[f"{stored}.{name}"][1, ..., 0], state[stored][rows])
    assert batch["gru.weight_ih_l0.update"].data_ptr() > batch.values.data_ptr()
    batch["gru.weight_hh_l0.new"].zero_()
    assert not batch.state_dict(0)["gru.weight_hh_l0"][10:].any()
    assert batch.state_dict(0)["gru.weight_hh_l0"][:10].any()


def test_fused_heads_are_views() -> None:
    spec = attention_spec(width=6, heads=2, channels=3)
    batch = numbered(spec, channels=2)
    stored = batch.values[:, :108].reshape(2, 3, 2, 3, 6, 2)  # network, qkv, head, channel, input, C
    for number, name in enumerate(("query", "key", "value")):
        assert torch.equal(batch[name], stored[:, number])
    out = batch.values[:, spec.stored[2].offset : spec.stored[3].offset].reshape(2, 6, 2, 3, 2)
    assert torch.equal(batch["output"], out)


def test_all_tensors_at_once_are_the_single_ones() -> None:
    for spec in (mlp_spec([2, 3, 1]), gru_spec(), attention_spec()):
        batch = numbered(spec, channels=3)
        together = batch.tensors()
        assert set(together) == set(spec.tensor)
        for name, tensor in together.items():
            assert torch.equal(tensor, batch[name])
            assert tensor.shape == (2, *spec.tensor[name].shape, 3)


def test_scattered_tensors_are_gathered() -> None:
    """Two interleaved tensors: positions 0, 2, 4 and 1, 3, 5."""
    spec = mlp_spec([1, 3, 1])
    weight, bias = spec.tensors[:2]
    even = type(weight)(weight.name, "weight", 0, (3, 1), (2, 1), weight.axes, weight.scaling)
    odd = type(bias)(bias.name, "bias", 1, (3,), (2,), bias.axes, bias.scaling)
    spec = spec.replace(tensors=(even, odd, *spec.tensors[2:]))
    batch = numbered(spec, size=1)
    assert batch[weight.name].flatten().tolist() == [0, 2, 4]
    assert batch.tensors()[bias.name].flatten().tolist() == [1, 3, 5]


def test_state_dicts_go_round() -> None:
    spec = gru_spec()
    modules = [nn.ModuleDict({"gru": nn.GRU(3, 5, batch_first=True), "head": nn.Linear(5, 2)}) for _ in range(3)]
    batch = WeightBatch.from_state_dicts(spec, [m.state_dict() for m in modules])
    assert batch.values.shape == (3, spec.numel, 1)
    for row, module in enumerate(modules):
        for name, tensor in batch.state_dict(row).items():
            assert torch.equal(tensor, module.state_dict()[name])
    broken = modules[1].state_dict() | {"head.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"network 1: 'head.bias' should be \(2,\), is \(3,\)"):
        WeightBatch.from_state_dicts(spec, [modules[0].state_dict(), broken])
    with pytest.raises(ValueError, match=r"network 0: 'gru.weight_ih_l0' .* is missing"):
        WeightBatch.from_state_dicts(spec, [{}])
    with pytest.raises(ValueError, match="one channel, this batch has 2"):
        WeightBatch(spec, torch.zeros(1, spec.numel, 2)).state_dict(0)


def test_shapes_are_checked() -> None:
    spec = mlp_spec([2, 3, 1])
    for shape in ((2, spec.numel), (2, spec.numel + 1, 1)):
        with pytest.raises(ValueError, match=rf"values must be \[B, {spec.numel}, C\]"):
            WeightBatch(spec, torch.zeros(shape))


# -- mixed ------------------------------------------------------------------------------------------------------------

SPECS = (mlp_spec([2, 3, 1]), mlp_spec([2, 5, 4, 1]), gru_spec(), mlp_spec([2, 3, 1], "tanh"))


def labelled(spec: WeightSpec, *ids: int) -> WeightBatch:
    ids_ = torch.tensor(ids)
    values = torch.arange(spec.numel) + 1000.0 * ids_.unsqueeze(1)
    return WeightBatch(spec, values.unsqueeze(-1), target=ids_ * 0.5, row_ids=ids_)


def mixed() -> MixedWeightBatch:
    parts = [labelled(SPECS[0], 1, 2), labelled(SPECS[2], 3), labelled(SPECS[1], 4), labelled(SPECS[0], 5)]
    return MixedWeightBatch.collate([*parts, labelled(SPECS[3], 6)])


def rows_of(batch: MixedWeightBatch) -> list[Tensor]:
    return [batch.values[a:b, 0] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


def test_collate_keeps_order_and_distinct_specs() -> None:
    batch = mixed()
    assert batch.specs == (SPECS[0], SPECS[2], SPECS[1], SPECS[3])
    assert batch.spec_ids.tolist() == [0, 0, 1, 2, 0, 3]
    assert batch.row_ids.tolist() == [1, 2, 3, 4, 5, 6] and batch.target.tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
    for number, row in enumerate(rows_of(batch)):
        spec = batch.specs[batch.spec_ids[number]]
        assert torch.equal(row, torch.arange(spec.numel) + 1000.0 * (number + 1))
    bare = MixedWeightBatch.collate([WeightBatch(SPECS[0], torch.zeros(1, SPECS[0].numel, 1)), labelled(SPECS[1], 1)])
    assert bare.target is None and bare.row_ids is None


def test_split_and_merge_are_inverse() -> None:
    batch = mixed()
    parts = batch.split()
    assert [positions.tolist() for positions, _ in parts] == [[0, 1, 4], [2], [3], [5]]
    for positions, part in parts:
        assert torch.equal(part.row_ids, batch.row_ids[positions]) and torch.equal(part.target, batch.target[positions])
        for position, row in zip(positions, part.values, strict=True):
            assert torch.equal(row[:, 0], rows_of(batch)[position])
    doubled = batch.merge([(positions, part.values.repeat(1, 1, 2) * 2) for positions, part in reversed(parts)])
    assert torch.equal(doubled.values, batch.values.repeat(1, 2) * 2)


def test_select_takes_rows_in_any_order() -> None:
    batch = mixed()
    chosen = batch.select(torch.tensor([5, 0, 3, 0]))
    assert chosen.row_ids.tolist() == [6, 1, 4, 1]
    assert set(chosen.specs) == {SPECS[0], SPECS[1], SPECS[3]}
    for row, number in zip(rows_of(chosen), (5, 0, 3, 0), strict=True):
        assert torch.equal(row, rows_of(batch)[number])
    assert all(
        chosen.specs[i] == batch.specs[j] for i, j in zip(chosen.spec_ids, batch.spec_ids[[5, 0, 3, 0]], strict=True)
    )


def test_tables_are_strung_together_and_remembered() -> None:
    batch = mixed()
    calls = []

    def bias_positions(spec: WeightSpec) -> Tensor:
        calls.append(spec)
        return torch.cat([torch.from_numpy(t.index().ravel()) for t in spec.tensors if t.role == "bias"])

    for _ in range(2):
        rows, owner, offsets = batch.tables(bias_positions)
        found = batch.values[rows + batch.offsets[owner], 0]
        expected = [
            torch.cat([row[t.index().ravel()] for t in batch.specs[i].tensors if t.role == "bias"])
            for row, i in zip(rows_of(batch), batch.spec_ids, strict=True)
        ]
        assert torch.equal(found, torch.cat(expected))
        assert offsets.diff().tolist() == [len(e) for e in expected]
    assert len(calls) == 4  # once for each distinct spec


def test_remembered_tables_stay_within_a_budget() -> None:
    tables, calls = _Tables(budget=2000), []

    def table_of(spec: WeightSpec) -> Tensor:
        calls.append(spec)
        return torch.zeros(100)  # 400 bytes

    specs = [mlp_spec([2, width, 1]) for width in range(1, 8)]
    for spec in [*specs[:5], specs[0]]:
        tables.get(table_of, spec)
    assert len(calls) == 5 and tables.held == 2000
    tables.get(table_of, specs[5])  # the second goes, the first was used last
    tables.get(table_of, specs[0])
    assert len(calls) == 6 and tables.held == 2000
    tables.get(table_of, specs[1])
    assert len(calls) == 7


def test_padded_rows() -> None:
    batch = mixed()
    values, mask = batch.padded()
    assert values.shape == (6, max(s.numel for s in batch.specs), 1)
    for number, row in enumerate(rows_of(batch)):
        assert torch.equal(values[number, mask[number], 0], row)
        assert not values[number, ~mask[number]].any()
    assert torch.equal(values[mask], batch.values)


def test_ragged_runs() -> None:
    numbers, owner, offsets = ragged(torch.tensor([10, 0, 5]), torch.tensor([2, 0, 3]))
    assert numbers.tolist() == [10, 11, 5, 6, 7]
    assert owner.tolist() == [0, 0, 2, 2, 2] and offsets.tolist() == [0, 2, 2, 5]


def test_moves_carry_all_tensors() -> None:
    single = labelled(SPECS[0], 1).to("meta")
    assert single.values.is_meta and single.target.is_meta and single.row_ids.is_meta and single.spec == SPECS[0]
    batch, moved = mixed(), mixed().to("cpu", non_blocking=True)
    for name in ("values", "offsets", "spec_ids", "target", "row_ids"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))


def test_offsets_are_checked() -> None:
    batch = mixed()
    with pytest.raises(ValueError, match="offsets do not agree"):
        MixedWeightBatch(batch.specs, batch.spec_ids.flip(0), batch.values, batch.offsets)
    with pytest.raises(ValueError, match="offsets do not agree"):
        batch.with_values(batch.values[:-1])

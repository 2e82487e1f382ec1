"""The description of a zoo: everything of the file but the weights, the columns and the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from wsl import plain_json
from wsl.spec import WeightSpec
from wsl.zoo.layout import ZooError, check_splits

Array = npt.NDArray[Any]
AGAIN = "copy or build the file again"


@dataclass(frozen=True)
class Description:
    """See :class:`wsl.zoo.reader.Zoo` for what each field holds."""

    digest: str
    recipe: dict[str, Any]
    specs: tuple[WeightSpec, ...]
    spec_ids: Array
    run_ids: Array
    row_ptr: Array
    splits: dict[str, Array]
    columns: tuple[str, ...]


def describe(file: h5py.File, path: Path) -> Description:
    """Read and cross-check the description.

    Args:
        file: as :func:`wsl.zoo.guard.open_checked` returns it. ``path``: its name, for messages.

    Raises:
        ZooError: if a part is damaged, or two parts contradict each other.
    """
    run_ids = whole(file, path, "run_id")
    columns = tuple(sorted(file["columns"]))
    weights = ("params",) if "params" in file else ("spec_id",)
    for name in (*weights, *(f"columns/{column}" for column in columns)):
        if len(file[name]) != len(run_ids):
            raise ZooError(f"{path}: {name!r} has {len(file[name])} rows, run_id has {len(run_ids)}; {AGAIN}")
    described = _json(file, path, "specs", list)
    if "params" in file:
        spec_ids, numels = np.zeros(len(run_ids), dtype=np.int64), [file["params"].shape[1]]
        if len(described) != 1:
            raise ZooError(f"{path}: 'params' belongs to one spec, 'specs' has {len(described)}; {AGAIN}")
    else:
        spec_ids, numels = _mixed(file, path, len(described))
    specs = tuple(_spec(path, i, data, n) for i, (data, n) in enumerate(zip(described, numels, strict=True)))
    splits = {name: whole(file, path, f"splits/{name}") for name in sorted(file["splits"])}
    try:
        check_splits(splits, len(run_ids))
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error
    return Description(
        digest=digest_in(file),
        recipe=_json(file, path, "recipe", dict),
        specs=specs,
        spec_ids=spec_ids,
        run_ids=run_ids,
        row_ptr=np.concatenate([np.zeros(1, np.int64), np.array(numels, np.int64)[spec_ids].cumsum()]),
        splits=splits,
        columns=columns,
    )


def digest_in(file: h5py.File) -> str:
    """The digest that was stored at writing."""
    return file.attrs["digest"].decode("ascii", "replace")


def whole(file: h5py.File, path: Path, name: str) -> Array:
    """A dataset as an array; a failing checksum is a :class:`ZooError`."""
    try:
        return file[name][()]
    except OSError as error:
        raise ZooError(f"{path}: {name!r} is damaged ({error}); {AGAIN}") from error


def _json(file: h5py.File, path: Path, name: str, kind: type) -> Any:
    text = whole(file, path, name).tobytes()
    try:
        value = plain_json.load(text)
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path}: {name!r} is no JSON ({error}); {AGAIN}") from error
    if not isinstance(value, kind):
        raise ZooError(f"{path}: {name!r} is a JSON {type(value).__name__}, expected a {kind.__name__}; {AGAIN}")
    return value


def _mixed(file: h5py.File, path: Path, specs: int) -> tuple[Array, list[int]]:
    """Spec ids, and the length that the rows of each spec have."""
    spec_ids, row_ptr = whole(file, path, "spec_id"), whole(file, path, "row_ptr")
    if spec_ids.min() < 0 or spec_ids.max() >= specs:
        row = int(((spec_ids < 0) | (spec_ids >= specs)).argmax())
        raise ZooError(f"{path}: row {row} has spec_id {spec_ids[row]}, there are {specs} specs; {AGAIN}")
    if len(row_ptr) != len(spec_ids) + 1 or row_ptr[0] != 0 or row_ptr[-1] != len(file["values"]):
        raise ZooError(
            f"{path}: 'row_ptr' has {len(row_ptr)} entries from {row_ptr[0]} to {row_ptr[-1]}, expected "
            f"{len(spec_ids) + 1} from 0 to {len(file['values'])}; {AGAIN}"
        )
    lengths, numels = np.diff(row_ptr), np.zeros(specs, dtype=np.int64)
    numels[spec_ids] = lengths
    wrong = (lengths < 1) | (numels[spec_ids] != lengths)
    if wrong.any():
        row = int(wrong.argmax())
        raise ZooError(f"{path}: row {row} has {lengths[row]} values, others of spec {spec_ids[row]} differ; {AGAIN}")
    if unused := np.setdiff1d(np.arange(specs), spec_ids).tolist():
        raise ZooError(f"{path}: no row has the specs {unused[:5]}; {AGAIN}")
    return spec_ids, numels.tolist()


def _spec(path: Path, number: int, data: Any, numel: int) -> WeightSpec:
    """The spec, after its sizes were compared with what is stored: a short JSON could ask for any memory."""
    where = f"{path}: spec {number}"
    try:
        for part in ("stored", "tensors"):
            total = sum(math.prod(item["shape"]) for item in data[part])
            if total != numel or any(size < 1 for item in data[part] for size in item["shape"]):
                raise ZooError(f"{where}: its {part} have {total} values, its rows have {numel}; {AGAIN}")
        return WeightSpec.from_dict(data)
    except ZooError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ZooError(f"{where} is malformed ({error}); {AGAIN}") from error

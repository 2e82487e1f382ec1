"""Damaged and hostile files: one clear error each, before anything in them is followed or trusted."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from zoo_files import SIREN, chunk_offset, create, flip, write_mixed_zoo

from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.guard import open_checked


def _external(file: h5py.File) -> None:
    del file["params"]
    file["params"] = h5py.ExternalLink("other.h5", "/params")


def _soft_group(file: h5py.File) -> None:
    file.move("columns", "hidden")
    file["columns"] = h5py.SoftLink("/hidden")


def _external_group(file: h5py.File) -> None:
    del file["splits"]
    file["splits"] = h5py.ExternalLink("other.h5", "/splits")


def _soft_column(file: h5py.File) -> None:
    file["columns/more"] = h5py.SoftLink("/run_id")


def _external_storage(file: h5py.File) -> None:
    values = file["images"][()]
    create(file, "images", values, lambda p: p.set_external(b"/etc/passwd", 0, values.nbytes))


def _virtual(file: h5py.File) -> None:
    shape = file["params"].shape
    layout = h5py.VirtualLayout(shape=shape, dtype="<f4")
    layout[:] = h5py.VirtualSource("other.h5", "params", shape=shape)
    del file["params"]
    file.create_virtual_dataset("params", layout)


def _references(file: h5py.File) -> None:
    create(file, "columns/label", np.array([file.ref] * 60, dtype=h5py.ref_dtype))


def _region_references(file: h5py.File) -> None:
    create(file, "columns/label", np.array([file["run_id"].regionref[:2]] * 60, dtype=h5py.regionref_dtype))


def _variable_text(file: h5py.File) -> None:
    create(file, "columns/name", np.array(["a"] * 60, dtype=h5py.string_dtype()), lambda p: p.set_chunk((60,)))


def _compound(file: h5py.File) -> None:
    create(file, "columns/label", np.zeros(60, dtype=[("a", "<i4"), ("b", "<f8")]))


def _committed_type(file: h5py.File) -> None:
    file["columns/kind"] = np.dtype("<f4")


def _filter(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def plant(file: h5py.File) -> None:
        values = file["params"][()]
        del file["params"]
        file.create_dataset("params", data=values, chunks=values.shape, **options)

    plant.__name__ = name
    return plant


def _unknown_filter(file: h5py.File) -> None:
    def prepare(properties: Any) -> None:
        properties.set_chunk((60, 59))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        properties.set_fletcher32()

    create(file, "params", file["params"][()], prepare)


def _declared(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Callable[[h5py.File], None]:
    def plant(file: h5py.File) -> None:
        del file["params"]
        file.create_dataset("params", shape=shape, dtype="<f4", chunks=chunk, fletcher32=True)

    return plant


def _unset_chunks(file: h5py.File) -> None:
    values = file["params"][()]
    del file["params"]
    file.create_dataset("params", shape=(60, 59), dtype="<f4", chunks=(10, 59), fletcher32=True)[:30] = values[:30]


def _big_chunk(file: h5py.File) -> None:
    create(file, "images", np.zeros((4, 2**20), np.uint8))


def _replace(name: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    return lambda file: create(file, name, values)


def _text(name: str, text: str) -> Callable[[h5py.File], None]:
    return _replace(name, np.frombuffer(text.encode(), dtype=np.uint8))


def _spec(change: Callable[[dict[str, Any]], Any]) -> Callable[[h5py.File], None]:
    data = SIREN.to_dict()
    change(data)
    return _text("specs", json.dumps([data]))


def _huge_spec(data: dict[str, Any]) -> None:
    data["stored"] = [{"name": "a", "shape": [10**15], "offset": 0}]


def _huge_tensor(data: dict[str, Any]) -> None:
    data["labels"].append({"name": "vast", "size": 10**15, "kind": "fixed", "symmetries": []})
    data["tensors"][0] |= {"shape": [10**15], "strides": [0], "axes": ["vast"], "scaling": [0]}


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.create(name, value)


def _delete(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


HOSTILE: list[tuple[str, Callable[[h5py.File], Any], str]] = [
    ("external link", _external, "'params' is an external link, which can lead out of the file"),
    ("soft-linked group", _soft_group, "'columns' is a soft link"),
    ("external group", _external_group, "'splits' is an external link"),
    ("soft link in a group", _soft_column, "columns/'more' is a soft link"),
    ("external storage", _external_storage, "'images' lies in external storage"),
    ("virtual dataset", _virtual, "'params' is a virtual dataset"),
    ("object references", _references, "'columns/label' is a reference"),
    ("region references", _region_references, "'columns/label' is a reference"),
    ("variable-length text", _variable_text, "'columns/name' is variable-length text"),
    ("compound", _compound, "'columns/label' is compound"),
    ("committed type", _committed_type, "'columns/kind' is no dataset"),
    ("group for a dataset", lambda f: f["columns"].create_group("label2"), "'columns/label2' is no dataset"),
    ("unknown member", lambda f: f.create_group("extra"), "'extra' is no part of a zoo"),
    ("hard link to the root", lambda f: f["columns"].__setitem__("up", f["/"]), "'columns/up' is no dataset"),
    ("dataset for a group", lambda f: (f.__delitem__("splits"), create(f, "splits", np.arange(3))), "'splits' is no"),
    ("no checksums", _filter("plain"), r"'params' has the filters \[\]"),
    ("compressed", _filter("gzip", compression="gzip", fletcher32=True), r"the filters \[1, 3\]|the filters \[3, 1\]"),
    ("unknown filter", _unknown_filter, "the filters .*32015"),
    ("shape bomb", _declared((10**9, 59), (1000, 59)), "declares 236000000000 bytes .* incomplete or hostile"),
    ("unwritten chunks", _unset_chunks, "declares 14160 bytes .* incomplete or hostile"),
    ("large chunk", _big_chunk, "in chunks of 4194304"),
    ("wrong type", lambda f: create(f, "params", f["params"][()].astype("<f8")), "'params' is <f8, expected <f4"),
    ("big-endian", lambda f: create(f, "run_id", f["run_id"][()].astype(">i8")), "'run_id' is >i8, expected <i8"),
    ("wrong axes", lambda f: create(f, "params", f["params"][()].ravel()), "'params' has shape .*expected 2 axes"),
    ("missing weights", _delete("params"), "dataset 'params' is missing"),
    ("missing specs", _delete("specs"), "dataset 'specs' is missing"),
    ("missing recipe", _delete("recipe"), "dataset 'recipe' is missing"),
    ("missing run ids", _delete("run_id"), "dataset 'run_id' is missing"),
    ("missing splits", _delete("splits"), "dataset 'splits' is missing"),
    ("other format", _attribute("format", np.bytes_("images")), "format 'images' is not 'wsl-zoo'"),
    ("newer version", _attribute("version", np.int64(2)), "format version 2; this release reads version 1"),
    ("version as text", _attribute("version", np.bytes_("1")), "attribute 'version' is no plain number"),
    ("no version", lambda f: f.attrs.__delitem__("version"), "attribute 'version' is missing"),
    ("attribute reference", lambda f: f.attrs.create("digest", f.ref, dtype=h5py.ref_dtype), "'digest' is no plain"),
    ("attribute number", _attribute("digest", np.int64(7)), "attribute 'digest' is no plain number or short text"),
    ("attribute array", _attribute("digest", np.zeros(4)), "'digest' is no plain number or short text"),
    ("attribute text", _attribute("digest", "variable"), "'digest' is no plain number or short text"),
    ("no JSON", _text("specs", "{"), "'specs' is no JSON"),
    ("deep JSON", _text("recipe", "[" * 200_000), "'recipe' is no JSON"),
    ("no list", _text("specs", "{}"), "'specs' is a JSON dict, expected a list"),
    ("no specs", _text("specs", "[]"), "'params' belongs to one spec, 'specs' has 0"),
    ("no spec", _text("specs", "[3]"), "spec 0 is malformed"),
    ("other P", lambda f: create(f, "params", f["params"][:, :58]), "its stored have 59 values, its rows have 58"),
    ("spec of an absurd size", _spec(_huge_spec), "its stored have 1000000000000000 values, its rows have 59"),
    ("tensor of an absurd size", _spec(_huge_tensor), "its tensors have 1000000000000047 values"),
    ("spec version", _spec(lambda d: d.update(version=7)), "spec 0 is malformed .*version 7"),
    ("spec sizes as text", _spec(lambda d: d["labels"][0].update(size="2")), "spec 0 is malformed"),
    ("negative sizes", _spec(lambda d: d["stored"][0].update(shape=[-6, -2])), "its stored have 59 values"),
    ("column length", _replace("columns/label", np.arange(7)), "'columns/label' has 7 rows, run_id has 60"),
    ("row outside", _replace("splits/val", np.array([99])), "split 'val' names row 99"),
    ("row in two splits", _replace("splits/val", np.array([0])), "row 0 is in split 'test'|row 0 is in split 'train'"),
]


@pytest.mark.parametrize(("plant", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_files_are_refused(zoo_path: Path, plant: Callable[[h5py.File], Any], message: str) -> None:
    with h5py.File(zoo_path, "r+", libver=("v110", "v110")) as file:
        plant(file)
    with pytest.raises(ZooError, match=message) as caught:
        Zoo(zoo_path)
    assert str(caught.value).startswith(str(zoo_path))


MIXED_FAULTS: list[tuple[str, Callable[[h5py.File], Any], str]] = [
    ("spec ids", lambda f: create(f, "spec_id", f["spec_id"][()] + 1), "has spec_id 3, there are 3 specs"),
    ("fewer spec ids", lambda f: create(f, "spec_id", f["spec_id"][:-1]), "'spec_id' has 29 rows, run_id has 30"),
    ("row ends", lambda f: create(f, "row_ptr", f["row_ptr"][()] + 1), "'row_ptr' has 31 entries from 1 to"),
    ("lengths", lambda f: create(f, "row_ptr", np.sort(f["row_ptr"][()] ^ 1)), "'row_ptr' has|row .* has .* values"),
    ("unused spec", lambda f: _text("specs", f["specs"][()].tobytes().decode()[:-1] + ",{}]")(f), "specs .3."),
]


@pytest.mark.parametrize(("plant", "message"), [h[1:] for h in MIXED_FAULTS], ids=[h[0] for h in MIXED_FAULTS])
def test_contradictions_of_mixed_zoos(tmp_path: Path, plant: Callable[[h5py.File], Any], message: str) -> None:
    path, _, _ = write_mixed_zoo(tmp_path / "m.h5")
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        plant(file)
    with pytest.raises(ZooError, match=message):
        Zoo(path)


def test_files_that_are_no_zoo(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("weights")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, message in {
        "": "is a folder",
        "absent.h5": "does not exist",
        "empty.h5": "no HDF5 file .is empty",
        "text.h5": "no HDF5 file .starts with b'weights'",
        "other.h5": "attribute 'format' is missing",
    }.items():
        with pytest.raises(ZooError, match=message):
            Zoo(tmp_path / name)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(zoo_path: Path, good: bytes, share: float) -> None:
    zoo_path.write_bytes(good[: int(share * len(good))])
    with pytest.raises(ZooError, match="damaged or truncated"):
        Zoo(zoo_path)


def test_a_flipped_weight_names_its_rows(tmp_path: Path) -> None:
    path, _, _ = write_mixed_zoo(tmp_path / "m.h5")
    flip(path, chunk_offset(path, "values") + 4 * 700)
    with Zoo(path) as zoo, pytest.raises(ZooError, match=r"m\.h5: rows 0 to 29 are damaged .*copy or build"):
        zoo.read_mixed(3, 5)


def test_only_the_damaged_chunk_is_lost(tmp_path: Path) -> None:
    path, spec, rows = tmp_path / "z.h5", mlp_spec((31, 63)), 300
    with ZooWriter(path, spec, rows, {}) as writer:
        writer.write(0, np.ones((rows, spec.numel), np.float32))
    flip(path, chunk_offset(path, "params", 3) + 100)
    with Zoo(path) as zoo:
        (size,) = {zoo.file()["params"].chunks[0]}
        assert size == 60
        assert zoo.read(0, 180).all() and zoo.read(240, 300).all()
        for read in (lambda: zoo.read(0, 300), lambda: zoo.read_rows([299, 200, 4])):
            with pytest.raises(ZooError, match="rows 180 to 239 are damaged"):
                read()


def test_no_flipped_byte_goes_unnoticed(zoo_path: Path, good: bytes) -> None:
    """Any byte: an error, or nothing that can be read has changed."""
    reference = Zoo(zoo_path)
    rng = np.random.default_rng(0)
    offsets = np.concatenate([rng.integers(0, len(good), 150), np.arange(0, 96)])
    errors = 0
    for offset in offsets.tolist():
        zoo_path.write_bytes(good)
        flip(zoo_path, offset)
        try:
            with Zoo(zoo_path) as zoo:
                assert zoo.content_digest() == zoo.digest == reference.digest, f"byte {offset}"
        except ZooError:
            errors += 1
    assert errors > 100


def test_hdf5_has_no_folder_to_load_plugins_from() -> None:
    assert h5py.h5pl.size() == 0


def test_a_locked_file_can_be_read(zoo_path: Path) -> None:
    with zoo_path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with open_checked(zoo_path) as file:
            assert file.mode == "r" and not file.id.get_access_plist().get_file_locking()[0]


def test_a_read_only_file_in_a_read_only_folder(zoo_path: Path) -> None:
    zoo_path.chmod(0o400)
    zoo_path.parent.chmod(0o500)
    try:
        assert Zoo(zoo_path).read(0, 1).shape == (1, SIREN.numel)
    finally:
        zoo_path.parent.chmod(0o700)

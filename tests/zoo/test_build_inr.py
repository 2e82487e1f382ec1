"""Building INR zoos: the plan, the file, and builds that are interrupted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsl import native
from wsl.batch import WeightBatch
from wsl.config import ConfigError, validated
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.build import siren_fit, siren_native
from wsl.zoo.build.inr import INRRecipe
from wsl.zoo.build.inr_recipe import plan
from wsl.zoo.build.kinds import build_zoo
from wsl.zoo.build.work_folder import WorkFolder, differences
from wsl.zoo.images import Images
from wsl.zoo.render import render
from wsl.zoo.verify import verify_zoo

ROOT = Path(__file__).parents[2]
# -- the plan ---------------------------------------------------------------------------------------------------------


def recipe(**changes: Any) -> INRRecipe:
    small: dict[str, Any] = {"images": {"train": "digits", "test": None}, "val_images": 180, "test_images": 360}
    return INRRecipe.model_validate(small | changes)


def labelled(count: int, side: int = 2, seed: int = 0) -> Images:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, count), f"images{seed}")


def test_published_sizes() -> None:
    train, test = labelled(60_000, side=1), labelled(10_000, side=1, seed=1)
    rows = plan(recipe(val_images=5000, test_images=0), train, test)
    assert {name: len(index) for name, index in rows.splits.items()} == {"train": 55_000, "val": 5_000, "test": 10_000}
    assert (rows.source[rows.image[rows.splits["test"]]] == 1).all()
    assert (rows.source[rows.image[rows.splits["train"]]] == 0).all()
    np.testing.assert_array_equal(rows.labels[:60_000], train.labels)
    np.testing.assert_array_equal(rows.pixels[60_000:], test.pixels)


def test_views_of_an_image_stay_together_and_only_training_images_have_several() -> None:
    rows = plan(recipe(views=4, val_images=20, test_images=30), labelled(200), None)
    images = {name: rows.image[index] for name, index in rows.splits.items()}
    assert {name: len(set(index)) for name, index in images.items()} == {"train": 150, "val": 20, "test": 30}
    assert {name: len(index) for name, index in images.items()} == {"train": 600, "val": 20, "test": 30}
    assert not set(images["train"]) & set(images["val"]) | set(images["val"]) & set(images["test"])
    assert np.array_equal(np.sort(np.concatenate(list(rows.splits.values()))), np.arange(len(rows)))
    for image in set(images["train"]):
        assert rows.view[rows.image == image].tolist() == [0, 1, 2, 3]


def test_held_out_images_have_the_labels_of_the_file() -> None:
    labels = np.repeat(np.arange(4), [400, 200, 100, 100])
    pixels = np.zeros((800, 1, 1, 1), dtype=np.uint8)
    rows = plan(recipe(val_images=80, test_images=160), Images(pixels, labels, ""), None)
    for name, size in (("val", 80), ("test", 160)):
        counts = np.bincount(rows.labels[rows.image[rows.splits[name]]])
        assert np.abs(counts - size * np.array([0.5, 0.25, 0.125, 0.125])).max() <= 1
    other = plan(recipe(val_images=80, test_images=160, seed=1), Images(pixels, labels, ""), None)
    assert not np.array_equal(other.splits["val"], rows.splits["val"])


def test_limit_keeps_the_proportions_and_the_networks_of_its_images() -> None:
    train, test = labelled(600), labelled(100, seed=1)
    small, large = (plan(recipe(limit=limit, val_images=50), train, test) for limit in (70, 140))
    assert {name: len(rows) for name, rows in small.splits.items()} == {"train": 55, "val": 5, "test": 10}
    assert set(small.source_index[small.source == 0]) < set(large.source_index[large.source == 0])
    np.testing.assert_array_equal(small.pixels[small.source == 1], test.pixels[small.source_index[small.source == 1]])
    keys = {key[:3] for key in small.seeds(recipe(), np.arange(len(small)))}
    assert keys < {key[:3] for key in large.seeds(recipe(), np.arange(len(large)))}


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ZooError, match="none is left to train on"):
        plan(recipe(val_images=50, test_images=50), labelled(100), None)
    with pytest.raises(ZooError, match=r"images1: images are \(3, 3, 1\)"):
        plan(recipe(), labelled(600), labelled(100, side=3, seed=1))


# -- building ---------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"limit": 40, "views": 2, "steps": 120, "block": 8}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(recipe(**QUICK), tmp_path_factory.mktemp("built") / "zoo.h5", progress=False)


def test_the_file_holds_what_the_recipe_says(built: Path) -> None:
    with Zoo(built) as zoo:
        assert {name: len(rows) for name, rows in zoo.splits.items()} == {"train": 56, "val": 4, "test": 8}
        assert zoo.specs[0].verified and zoo.specs[0].numel == 1185
        assert zoo.recipe["config"] == recipe(**QUICK).model_dump(mode="json")
        assert zoo.recipe["render"] == {"height": 8, "width": 8, "channels": 1, "range": [0, 1]}
        image, columns = zoo.column("image_index"), {name: zoo.column(name) for name in zoo.columns}
        np.testing.assert_array_equal(zoo.run_ids, image)
        np.testing.assert_allclose(columns["psnr"], -10 * np.log10(columns["fit_mse"]), atol=1e-3)
        assert columns["steps"].max() == 120 and set(columns["view"]) == {0, 1}
        values, images = zoo.read(0, len(zoo)), zoo.images
    assert images is not None and len(np.unique(values, axis=0)) == len(values)
    drawn = render(WeightBatch(zoo.specs[0], torch.from_numpy(values)[..., None]), 8, 8)[..., 0].numpy()
    error = ((drawn - images[image] / 255) ** 2).mean(1)
    np.testing.assert_allclose(error, columns["fit_mse"], rtol=1e-3, atol=1e-7)
    assert error.mean() < 5e-3 < ((drawn - images[np.roll(image, 7)] / 255) ** 2).mean()
    assert [check.failures for check in verify_zoo(built) if check.failures] == []


def test_the_nfn_convention_draws_the_same_images_in_another_range(tmp_path: Path) -> None:
    other = recipe(limit=20, steps=300, convention="nfn", output_offset=0.0)
    with Zoo(build_zoo(other, tmp_path / "zoo.h5", progress=False)) as zoo:
        assert zoo.recipe["render"]["range"] == [-1, 1] and zoo.specs[0].group["output"].parameters == {}
        values, images, psnr = zoo.read(0, len(zoo)), zoo.images, zoo.column("psnr")
        image = zoo.column("image_index")
    assert images is not None
    drawn = render(WeightBatch(zoo.specs[0], torch.from_numpy(values)[..., None]), 8, 8)[..., 0].numpy()
    error = ((drawn - (images[image] / 127.5 - 1)) ** 2).mean(1) / 4
    np.testing.assert_allclose(-10 * np.log10(error), psnr, atol=0.02)
    assert psnr.mean() > 20
    assert [check.failures for check in verify_zoo(tmp_path / "zoo.h5") if check.failures] == []
    with pytest.raises(ValueError, match="convention=nfn has none; set output_offset=0"):
        recipe(convention="nfn")


def test_networks_from_a_shared_start_fit_sooner_and_stay_together(tmp_path: Path) -> None:
    few: dict[str, Any] = {"limit": 60, "steps": 10, "views": 2, "stop_psnr": None}
    shared = {"images": 16, "rounds": 20, "steps": 20, "rate": 1.0}
    own, ours = (
        Zoo(build_zoo(recipe(**few, shared_start=start), tmp_path / f"{number}.h5", progress=False))
        for number, start in enumerate((None, shared))
    )
    assert ours.column("psnr").mean() > own.column("psnr").mean() + 1
    view = ours.column("view")
    for first in (0, 1):
        rows = np.flatnonzero(view == first)
        assert ours.read_rows(rows).std(0).mean() < 0.5 * own.read_rows(rows).std(0).mean()
    apart = ours.read_rows(np.flatnonzero(view == 0)).mean(0) - ours.read_rows(np.flatnonzero(view == 1)).mean(0)
    assert np.abs(apart).mean() > 2 * ours.read_rows(np.flatnonzero(view == 0)).std(0).mean()  # views differ
    again = build_zoo(recipe(**few, shared_start=shared), tmp_path / "again.h5", progress=False, threads=1)
    assert again.read_bytes() == ours.path.read_bytes()


def test_a_file_older_than_an_option_has_its_default(built: Path, tmp_path: Path) -> None:
    with Zoo(built) as zoo:
        old = {key: value for key, value in zoo.recipe["config"].items() if key not in ("convention", "shared_start")}
        with ZooWriter(tmp_path / "old.h5", zoo.specs, len(zoo), zoo.recipe | {"config": old}) as writer:
            writer.write(0, zoo.read(0, len(zoo)))
    assert build_zoo(recipe(**QUICK), tmp_path / "old.h5", progress=False) == tmp_path / "old.h5"
    with pytest.raises(ZooError, match="convention is 'nfn', there 'dwsnets'"):
        build_zoo(recipe(**QUICK, convention="nfn", output_offset=0.0), tmp_path / "old.h5", progress=False)


def test_threads_and_kernels_do_not_matter(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = build_zoo(recipe(**QUICK), tmp_path / "zoo.h5", progress=False, threads=1)
    assert again.read_bytes() == built.read_bytes()
    monkeypatch.setattr("wsl.zoo.build.inr.default_kernel", lambda: "torch")
    slow = Zoo(build_zoo(recipe(**QUICK), tmp_path / "torch.h5", progress=False))
    np.testing.assert_allclose(slow.read(0, len(slow)), Zoo(built).read(0, len(slow)), atol=1e-4)


def test_without_a_compiler_the_torch_kernel_fits(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    siren_native._library.cache_clear()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    try:
        assert siren_fit.default_kernel() == "torch"
        assert "no C compiler" in caplog.text
    finally:
        siren_native._library.cache_clear()


def test_broken_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    siren_native._library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    try:
        assert not siren_native.available()
        assert "cannot be built" in caplog.text
    finally:
        siren_native._library.cache_clear()


def test_killed_and_restarted_gives_the_same_file(tmp_path: Path) -> None:
    long = {"limit": 100, "views": 3, "steps": 1500, "stop_psnr": None, "block": 8}
    code = (
        "import json, sys; from pathlib import Path; from wsl.zoo.build.inr import INRRecipe; "
        "from wsl.zoo.build.kinds import build_zoo; "
        "build_zoo(INRRecipe.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    target, arguments = tmp_path / "zoo.h5", json.dumps(recipe(**long).model_dump(mode="json"))
    work = tmp_path / "zoo.h5.partial"
    with subprocess.Popen([sys.executable, "-c", code, arguments, str(target)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while len(list(work.glob("block_*.npz"))) < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in work.glob("block_*.npz")}
    assert process.returncode == -signal.SIGKILL and 4 <= len(kept) < 30 and not target.exists()
    fitted: list[int] = []
    save = WorkFolder.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFolder, "save", lambda self, block, arrays: (fitted.append(block), save(self, block, arrays)))
        build_zoo(recipe(**long), target, progress=False)
    assert len(fitted) + len(kept) == -(-len(Zoo(target)) // 8)
    assert not work.exists()
    straight = build_zoo(recipe(**long), tmp_path / "straight.h5", progress=False)
    assert straight.read_bytes() == target.read_bytes()


def interrupted(target: Path, **changes: Any) -> Path:
    """Build until the third block cannot be saved for want of space; the work folder stays."""
    save = WorkFolder.save

    def fail(self: WorkFolder, block: int, arrays: Any) -> None:
        if block == 2:
            raise self._failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        save(self, block, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFolder, "save", fail)
        with pytest.raises(ZooError, match=r"No space left on device.*finished blocks are kept"):
            build_zoo(recipe(**QUICK | changes), target, progress=False, threads=1)
    return target.with_name("zoo.h5.partial")


def test_full_disk_keeps_the_blocks_and_damaged_ones_are_fitted_again(built: Path, tmp_path: Path) -> None:
    work = interrupted(tmp_path / "zoo.h5")
    assert {path.name for path in work.glob("block*")} >= {"block_000000.npz", "block_000001.npz"}
    assert not (tmp_path / "zoo.h5").exists()
    damaged = work / "block_000001.npz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert build_zoo(recipe(**QUICK), tmp_path / "zoo.h5", progress=False).read_bytes() == built.read_bytes()
    assert not work.exists()


def test_full_disk_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with WorkFolder(tmp_path / "zoo.h5", {"a": 1}) as folder:
        monkeypatch.setattr("wsl.zoo.build.work_folder.os.fsync", full)
        with pytest.raises(ZooError, match="free space and run the same command again"):
            folder.save(0, {"values": np.zeros(3)})
        assert sorted(path.name for path in folder.path.iterdir()) == ["lock", "recipe.json"]
        assert folder.load(0) is None


def test_work_of_another_recipe_is_refused(tmp_path: Path) -> None:
    work = interrupted(tmp_path / "zoo.h5")
    kept = sorted(path.name for path in work.iterdir())
    with pytest.raises(ZooError, match=r"another recipe: config\.learning_rate is 0\.001, there 0\.0005\. "):
        build_zoo(recipe(**QUICK, learning_rate=1e-3), tmp_path / "zoo.h5", progress=False)
    assert sorted(path.name for path in work.iterdir()) == kept


def test_second_builder_is_refused_with_the_first_ones_number(tmp_path: Path) -> None:
    target = tmp_path / "zoo.h5"
    with WorkFolder(target, {}), pytest.raises(ZooError, match=f"process {os.getpid()} is building this zoo"):
        build_zoo(recipe(**QUICK), target, progress=False)
    assert not target.exists()


def test_finished_zoo_is_left_alone(built: Path, tmp_path: Path) -> None:
    before = built.stat()
    assert build_zoo(recipe(**QUICK), built, progress=False) == built
    assert built.stat() == before and not built.with_name("zoo.h5.partial").exists()
    with pytest.raises(ZooError, match=r"another recipe: views is 3, there 2\. Choose another out=FILE"):
        build_zoo(recipe(**QUICK | {"views": 3}), built, progress=False)
    assert built.stat() == before


def test_differences_name_nested_keys() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == [
        "a.c is 2, there 4",
        "d is 3, there 'absent'",
    ]


def test_diverging_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"row 0 \(image 0, view 0\) diverged; lower zoo\.learning_rate"):
        build_zoo(recipe(**QUICK, learning_rate=1e30), tmp_path / "zoo.h5", progress=False, threads=1)
    assert not (tmp_path / "zoo.h5").exists()


def test_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"zoo\.h5\.partial: cannot be used .*choose another out=FILE"):
        build_zoo(recipe(**QUICK), tmp_path / "file" / "zoo.h5", progress=False)


def test_mnist_by_the_published_recipe(shared_data: Path, tmp_path: Path) -> None:
    files = {name: str(shared_data / f"mnist_{name}.npz") for name in ("train", "test")}
    published = recipe(images=files, limit=12, val_images=5000, test_images=0)
    with Zoo(build_zoo(published, tmp_path / "zoo.h5", progress=False)) as zoo:
        assert zoo.column("psnr").mean() > 25
        assert zoo.recipe["render"] == {"height": 28, "width": 28, "channels": 1, "range": [0, 1]}


def test_cifar_in_colour_and_grey(shared_data: Path, tmp_path: Path) -> None:
    files = {name: str(shared_data / f"cifar10_{name}.npz") for name in ("train", "test")}
    for grey, channels in ((False, 3), (True, 1)):
        few = recipe(images=files | {"greyscale": grey}, limit=12, val_images=1000, steps=40)
        with Zoo(build_zoo(few, tmp_path / f"{channels}.h5", progress=False)) as zoo:
            assert zoo.recipe["render"] == {"height": 32, "width": 32, "channels": channels, "range": [0, 1]}
            assert zoo.specs[0].size_of("output") == channels
        assert [check.failures for check in verify_zoo(tmp_path / f"{channels}.h5") if check.failures] == []


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_inr", "mnist_inr", "fashion_mnist_inr", "cifar10_inr"])
def test_recipes_of_the_config_folder_are_valid(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("build_zoo", [f"zoo={name}"]).zoo)
    assert isinstance(values, dict)
    recipe_of = validated(INRRecipe, values)  # type: ignore[arg-type]
    assert set(values) == set(INRRecipe.model_fields)
    assert (recipe_of.learning_rate, recipe_of.steps, recipe_of.stop_psnr, recipe_of.omega) == (5e-4, 1000, 40, 30)
    with pytest.raises(ConfigError, match="views=0"):
        validated(INRRecipe, values | {"views": 0})  # type: ignore[arg-type]


def test_recipe_of_the_nfn_sets_is_theirs() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("build_zoo", ["zoo=mnist_inr_nfn"]).zoo)
    theirs = validated(INRRecipe, values)  # type: ignore[arg-type]
    assert (theirs.convention, theirs.output_offset, theirs.pixel_range) == ("nfn", 0.0, (-1.0, 1.0))
    assert (theirs.learning_rate, theirs.steps, theirs.stop_psnr, theirs.omega) == (5e-5, 5000, None, 30)


def test_script_builds_and_refuses(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "build_zoo.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    good = run("zoo=digits_inr", "zoo.limit=30", "zoo.steps=20", "out=zoo.h5")
    assert good.returncode == 0, good.stderr
    assert "psnr" in good.stdout and "networks/s" in good.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.h5"]
    bad = run("zoo=digits_inr", "zoo.viws=3")
    assert bad.returncode == 1 and "unknown key zoo.viws=3; did you mean 'views'?" in bad.stderr
    assert "Traceback" not in bad.stderr

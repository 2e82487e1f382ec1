"""An allocation that fails, for real: the message says how large the step was and what to set."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from ranks_of_runs import ROOT, options

import train
from wsl import build
from wsl.checkpoint import CheckpointError
from wsl.out_of_memory import OutOfMemory, memory_told


class LittleMemory(pl.Callback):
    """The address space may grow by 20 MB from the first step on."""

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]))


def config(zoo: Path, *more: str) -> build.RunConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.config(compose("train", options(zoo, "trainer.max_epochs=1", *more)))


def test_a_step_that_does_not_fit(small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., pl.Trainer] = build.trainer

    def trainer(*given: object) -> pl.Trainer:
        made = original(*given)
        made.callbacks.append(LittleMemory())  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(build, "trainer", trainer)
    run = config(small_zoo, "encoder=mlp", "encoder.hidden=[200000]", "data.batch_size=48")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with pytest.raises(OutOfMemory) as error:
            train.run(run, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    said = str(error.value)
    assert "you tried to allocate" in said, "PyTorch's own words are kept"
    assert "data.batch_size=48" in said and "data.eval_batch_size=256" in said and "accumulate_grad_batches" in said
    assert "P=59 parameters, N=14 neurons and E=47 weights" in said  # 2-6-5-1
    assert isinstance(error.value.__cause__, RuntimeError)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
     RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")],
)  # fmt: skip
def test_errors_of_memory(small_zoo: Path, error: Exception) -> None:
    run = config(small_zoo)
    said = str(error).splitlines()[0] if str(error) else "MemoryError"
    with pytest.raises(OutOfMemory) as told, memory_told(run, build.data(run)):
        raise error
    assert f"({said})" in str(told.value) and told.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), CheckpointError("disk"), ValueError("can't allocate memory")]
)
def test_other_errors_pass(small_zoo: Path, error: Exception) -> None:
    run = config(small_zoo)
    with pytest.raises(type(error)) as passed, memory_told(run, build.data(run)):
        raise error
    assert passed.value is error


def test_the_memory_of_a_graph() -> None:
    given = ["data.path=digits_graph", "compare=[]", "experiment=digits_graph"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = build.config(compose("train", given))
    with pytest.raises(OutOfMemory, match=r"1,797 nodes.*data\.batch_size=None"), memory_told(run, build.data(run)):
        raise MemoryError

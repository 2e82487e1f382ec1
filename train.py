"""Train an encoder of network weights: ``python train.py``, ``python train.py encoder=statnn seed=1``, ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from wsl import build, report
from wsl.build import RunConfig
from wsl.command_line import interruption_told, one_job, plain_errors, refuse_unknown_keys, with_keys_of_run
from wsl.heap import keep_freed_memory
from wsl.out_of_memory import memory_told
from wsl.preemption import watched
from wsl.ranks import failures_told
from wsl.results import Result
from wsl.run_folder import owned


def run(config: RunConfig, folder: Path) -> Result:
    """Train one encoder and test it once, on the checkpoint that validation chose."""
    if done := report.finished(config, folder):
        return done
    data = build.data(config)
    encoder = build.encoder(config, data)
    task = build.task(config, encoder)
    trainer = build.trainer(config, task, data, folder)
    report.announce(config, folder, data, encoder, task)

    with memory_told(config, data):
        trainer.fit(task, data, ckpt_path=build.checkpoint(config, folder), weights_only=True)
        trainer.test(task, data, ckpt_path=build.chosen(trainer), weights_only=True, verbose=False)
    return report.conclude(config, folder, data, task, trainer)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run, the encoders that it is compared with, and the table. Returns the run's test metric."""
    with plain_errors(), watched(), one_job():
        config = build.config(cfg)
        folder = build.folder(config)
        with interruption_told(folder), owned(folder), failures_told(folder, config.ranks):
            config = build.continued(config, folder)
            results = [run(config, folder)]
            results += [run(other, folder / "compare" / name) for name, other in config.compared().items()]
            return report.finish(folder, results)


if __name__ == "__main__":
    keep_freed_memory()
    with plain_errors():
        refuse_unknown_keys("conf", "train")
    sys.argv[1:] = with_keys_of_run(sys.argv[1:])
    with plain_errors(), watched():
        main()

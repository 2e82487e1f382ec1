"""YAML of others: no tags, no aliases, no depth, no lookups; each refusal is one error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from wsl import plain_yaml, run_config
from wsl.config import ConfigError
from wsl.run_folder import RunFolderError, read_config, write_config

#: ten lines that name 10^9 values
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))

HOSTILE = {
    "alias bomb": (LAUGHS.encode(), r"aliases \(\*a0\)"),
    "recursive": (b"a: &a [*a]", r"aliases \(\*a\)"),
    "python object": (b"a: !!python/object/apply:os.mkdir [owned]", "could not determine a constructor"),
    "python name": (b"a: !!python/name:os.system", "could not determine a constructor"),
    "deep": (b"[" * 5000, "recursion"),
    "long number": (b"a: " + b"9" * 5000, "digits"),
    "impossible date": (b"a: 2024-99-99", "month"),
    "no text": (b"a: \xff\xfe\xfa", "invalid|unacceptable|decode"),
    "zero bytes": (b"a: \0", "special characters"),
    "large": (b"#" * (plain_yaml.MAX_BYTES + 1), "more than"),
    "key twice": (b"seed: 1\ntrainer: {devices: 1}\nseed: 2\n", r"the key 'seed' is there twice \(line 3\)"),
    "nested key twice": (b"trainer:\n  devices: 1\n  devices: 2\n", r"the key 'devices' is there twice \(line 3\)"),
    "list": (b"[1, 2]", "does not hold a config"),
    "empty": (b"", "does not hold a config"),
    "environment": (b"data: {path: '${oc.env:HOME}'}", r"data\.path=\$\{oc\.env:HOME\}.*looked up"),
    "resolver in a key": (b"data: {'${oc.env:HOME}': 1}", "looked up"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_config_that_no_run_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = HOSTILE[name]
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match=words) as error:
        read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and not (tmp_path / "owned").exists()


def test_plain_values_are_read() -> None:
    values = {"a": [1, 2.5, None, True, "x"], "b": {"c": "d"}}
    assert plain_yaml.load(yaml.safe_dump(values).encode()) == values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "../../elsewhere"}, r"label='\.\./\.\./elsewhere'"),
        ({"compare": {"../x": {}}}, r"compare\.\.\./x"),
        ({"compare": {"/x": {}}}, r"compare\./x"),
        ({"label": "a\nb"}, "label="),
        ({"seed": "1e-3"}, "seed='1e-3'"),  # to YAML, a number without a point is text: told, not guessed
        ({"seed": True}, "seed=True"),
    ],
)
def test_values_of_a_run_config_of_somebody_else(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Names that lead out of the run folder, and types that YAML guesses."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        values = run_config.config(compose("train", ["compare=[statnn]"])).plain()
    write_config(tmp_path, values)
    assert run_config.started_with(tmp_path).plain() == values
    changed = {**values, **change}
    if "compare" in change:
        changed["compare"] = dict.fromkeys(change["compare"], values["compare"]["statnn"])
    write_config(tmp_path, changed)
    with pytest.raises(ConfigError, match=words) as error:
        run_config.started_with(tmp_path)
    assert str(tmp_path / "config.yaml") in str(error.value)

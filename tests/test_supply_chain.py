"""What can be installed: everything by hash, and not the two malicious uploads of pytorch-lightning."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}


def test_every_pinned_package_has_a_hash() -> None:
    entries = re.split(r"(?m)^(?=[a-zA-Z])", (ROOT / "requirements.lock").read_text())[1:]
    assert len(entries) > 80
    for entry in entries:
        assert re.match(r"[\w.-]+==[^\s;]+", entry) and "--hash=sha256:" in entry, entry.splitlines()[0]
    assert not re.search(r"(?m)^(--|https?:|git\+|-e|\S+ @)", "".join(entries)), "from the index alone"


def test_malicious_versions_cannot_resolve() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    wanted = [Requirement(line) for line in re.findall(r'(?m)^\s+"([^"]+)",?$', text) if re.match(r"[a-zA-Z]", line)]
    lightning = [requirement for requirement in wanted if "lightning" in requirement.name]
    assert [requirement.name for requirement in lightning] == ["pytorch-lightning"]
    assert not any(version in lightning[0].specifier for version in MALICIOUS["pytorch-lightning"])
    assert "2.6.6" in lightning[0].specifier
    for package, versions in MALICIOUS.items():
        for version in versions:
            assert f"\n{package}=={version}" not in (ROOT / "requirements.lock").read_text()

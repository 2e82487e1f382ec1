"""C kernels, built once per machine by its C compiler and called without Python's lock."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC")
TYPES = {
    np.dtype(np.float32): ("-DREAL=float", "-DINTEGER=int32_t", "-DIS_DOUBLE=0", "-DROOT=sqrtf"),
    np.dtype(np.float64): ("-DREAL=double", "-DINTEGER=int64_t", "-DIS_DOUBLE=1", "-DROOT=sqrt"),
}


def library(module: str, sources: tuple[str, ...], dtype: np.dtype, what: str) -> ctypes.CDLL | None:
    """A kernel for numbers of one type; None, with a warning in the log, if it cannot be built or loaded.

    Args:
        module: ``__file__`` of the module that the sources lie beside.
        sources: a C file, and the headers that it includes, as paths from there.
        what: is then done by the slower kernel, for the warning.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        log.warning("no C compiler (cc, gcc or $CC) found: %s by the slower kernel", what)
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, [Path(module).parent / name for name in sources], dtype)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or error
        log.warning("the C kernel cannot be built (%s): %s by the slower kernel", detail, what)
        return None


def _built(compiler: str, sources: list[Path], dtype: np.dtype) -> Path:
    """Path of the compiled library; its name tells source, flags, compiler and processor apart.

    ``-march=native`` code must not travel: a home folder is shared by the different machines of a cluster.
    """
    command = [compiler, *FLAGS, *TYPES[dtype]]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    identity = hashlib.sha256("\n".join([*command, version, _processor()]).encode())
    for source in sources:
        identity.update(source.read_bytes())
    target = _cache() / f"{sources[0].stem}_{identity.hexdigest()[:32]}.so"
    if not target.exists():
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
        os.close(handle)
        try:
            command += [str(sources[0]), "-o", temporary, "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return target


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))


def _cache() -> Path:
    """A folder that only this user can write: ``$XDG_CACHE_HOME/wsl``, or one for this process if that cannot be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="wsl-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="wsl-"))

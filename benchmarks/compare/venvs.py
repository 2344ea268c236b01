"""A virtual environment per peer, made from its hashed lock when it is first wanted or the lock has changed."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.service_process import ROOT

_LOCKS = Path(__file__).parent / "peers"
_VENVS = ROOT / "benchmarks" / ".venvs"


class NotInstalled(Exception):
    """A peer's packages cannot be had here."""


def python_of(name: str) -> Path:
    """The interpreter of the environment that `peers/NAME.lock` describes. Raises NotInstalled."""
    lock, venv = _LOCKS / f"{name}.lock", _VENVS / name
    python, made_from = venv / "bin" / "python", venv / "made-from"
    wanted = sha256(lock.read_bytes()).hexdigest()
    if made_from.exists() and made_from.read_text() == wanted:
        return python
    print(f"Setting up {venv.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    arguments = ["--require-hashes", "-r", str(lock)]
    _run([sys.executable, "-m", "venv", str(venv)])
    try:
        _run([sys.executable, "-m", "uv", "--quiet", "pip", "install", "--python", str(python), *arguments])
    except NotInstalled:  # no uv, or it does not reach the packages: it does not read pip's configuration
        _run([str(python), "-m", "pip", "install", "--quiet", *arguments])
    made_from.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise NotInstalled(done.stderr.strip()[-400:])

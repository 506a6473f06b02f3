"""Environments of their own for what cannot or should not live with the rest; kept below scratch, made anew when the list changes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from filelock import FileLock

KEPT = ROOT / "scratch" / "environments"


def uv() -> str:
    """Where `make test` found or put it."""
    found = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    assert shutil.which(found), "uv is missing: run the tests by `make test`, which fetches it"
    return found


def environment(name: str, *requirements: str) -> Path:
    """The folder with the programs of an environment that has these requirements (as for `uv pip install`)."""
    listed = "\n".join((sys.version, *requirements, *(Path(r).read_text() for r in requirements if r.endswith(".txt"))))
    folder = KEPT / f"{name}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / f"{name}.lock"):
        if not (folder / "ready").exists():
            for old in KEPT.glob(f"{name}-*"):
                shutil.rmtree(old)
            args = [part for r in requirements for part in (("-r", r) if r.endswith(".txt") else (r,))]
            run([uv(), "venv", "--quiet", "--python", sys.executable, str(folder)])
            run([uv(), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(folder / "bin" / "python"), *args])
            (folder / "ready").touch()
    return folder / "bin"


def npm_package(name: str) -> Path:
    """The folder with the programs of a package from npm."""
    folder = KEPT / f"npm-{name}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / f"npm-{name}.lock"):
        if not (folder / "ready").exists():
            folder.mkdir(exist_ok=True)
            run(["npm", "install", "--no-save", "--no-audit", "--no-fund", name], folder)
            (folder / "ready").touch()
    return folder / "node_modules" / ".bin"


def run(command: list[str], folder: Path = ROOT, **more: str) -> str:
    """What a command prints; fails with it."""
    done = subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr

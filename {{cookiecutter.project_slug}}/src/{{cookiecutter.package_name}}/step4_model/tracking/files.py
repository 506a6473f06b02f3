"""Tracking and registry as JSON files under `runs`, safe for several processes at once.

A run is a folder with `run.json`; `registry.json` says which one is champion.
"""

import json
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...step1_requirements.page import write_text
from . import Run, Tracker


class FilesTracker:
    """See `Tracker`."""

    def __init__(self, root: Path) -> None:
        self.runs = root / "runs"
        self.registry = self.runs / "registry.json"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.runs / ".lock")

    def log(self, run: Run) -> str:
        """Record a run."""
        run_id = uuid.uuid4().hex
        shutil.copytree(run.artifacts, self.runs / run_id / "model")
        record = asdict(run) | {"artifacts": "model"}
        write_text(self.runs / run_id / "run.json", json.dumps(record, indent=2, ensure_ascii=False))
        return run_id

    def register(self, run_id: str) -> str:
        """Make a run a version."""
        with self.lock:
            registry = self._read()
            registry["versions"].append(run_id)
            self._write(registry)
            return str(len(registry["versions"]))

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias at a version."""
        with self.lock:
            registry = self._read()
            registry["aliases"][alias] = version
            self._write(registry)

    def version_of(self, alias: str) -> str | None:
        """The version behind an alias."""
        version: str | None = self._read()["aliases"].get(alias)
        return version

    def fetch(self, version: str, folder: Path) -> Path:
        """Copy a version's artifacts."""
        run_id = self._read()["versions"][int(version) - 1]
        return Path(shutil.copytree(self.runs / run_id / "model", folder / "model", dirs_exist_ok=True))

    def _read(self) -> dict[str, Any]:
        if not self.registry.exists():
            return {"versions": [], "aliases": {}}
        registry: dict[str, Any] = json.loads(self.registry.read_text(encoding="utf-8"))
        return registry

    def _write(self, registry: dict[str, Any]) -> None:
        write_text(self.registry, json.dumps(registry, indent=2))


def open_tracker(root: Path, name: str) -> Tracker:  # noqa: ARG001 - one registry per project needs no name
    """The tracker whose files are below `root`/runs."""
    return FilesTracker(root)

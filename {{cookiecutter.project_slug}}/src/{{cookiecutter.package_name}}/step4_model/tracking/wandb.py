"""Runs in Weights & Biases, offline below `wandb` until ``wandb sync`` or ``WANDB_MODE=online``; the registry beside them.

The registry is a local file, because an offline run has none: versions and aliases must be there before anything is uploaded.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import wandb
from filelock import FileLock

from ...step1_requirements.page import write_text
from . import Run, Tracker


class WandbTracker:
    """See `Tracker`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.models = root / "wandb" / "models"  # a folder per run: what was logged, and fetched again
        self.models.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.models / ".lock")

    def log(self, run: Run) -> str:
        """Record a run."""
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        with wandb.init(
            project=self.name, name=run.name, dir=str(self.root), mode=mode, config=dict(run.parameters) | {"tags": dict(run.tags)}, settings=settings
        ) as started:
            started.log(dict(run.metrics))
            artifact = wandb.Artifact(f"model-{started.id}", type="model", metadata=dict(run.tags))
            artifact.add_dir(str(run.artifacts))
            started.log_artifact(artifact)
            run_id = str(started.id)
        shutil.copytree(run.artifacts, self.models / run_id)
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
        return Path(shutil.copytree(self.models / run_id, folder / "model", dirs_exist_ok=True))

    def _read(self) -> dict[str, Any]:
        path = self.models / "registry.json"
        registry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"versions": [], "aliases": {}}
        return registry

    def _write(self, registry: dict[str, Any]) -> None:
        write_text(self.models / "registry.json", json.dumps(registry, indent=2))


def open_tracker(root: Path, name: str) -> Tracker:
    """The tracker whose runs are below `root`/wandb, in the project `name`."""
    return WandbTracker(root, name)

"""Runs in Weights & Biases, offline below `wandb` until ``wandb sync`` or ``WANDB_MODE=online``; the registry beside them.

The registry is a folder, because an offline run has none: a version is a folder in it, an alias a file with the version.
Making a folder and replacing a file are each one step, so several processes need no lock.
"""

import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import wandb

from ...step1_requirements.page import write_text
from . import Run, Tracker


class WandbTracker:
    """See `Tracker`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.registry = root / "wandb" / "registry"
        (self.registry / "runs").mkdir(parents=True, exist_ok=True)

    def log(self, run: Run) -> str:
        """Record a run."""
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        config = {**run.parameters, "tags": dict(run.tags)}
        with wandb.init(project=self.name, name=run.name, dir=str(self.root), mode=mode, config=config, settings=settings) as started:
            started.log(dict(run.metrics))
            artifact = wandb.Artifact(f"model-{started.id}", type="model", metadata=dict(run.tags))
            artifact.add_dir(str(run.artifacts))
            started.log_artifact(artifact)
            run_id = str(started.id)
        shutil.copytree(run.artifacts, self.registry / "runs" / run_id)
        return run_id

    def register(self, run_id: str) -> str:
        """Make a run a version."""
        for number in count(1):
            try:
                (self.registry / str(number)).mkdir()
            except FileExistsError:
                continue
            shutil.copytree(self.registry / "runs" / run_id, self.registry / str(number) / "model")
            break
        return str(number)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias at a version."""
        write_text(self.registry / f"{alias}.alias", version)

    def version_of(self, alias: str) -> str | None:
        """The version behind an alias."""
        file = self.registry / f"{alias}.alias"
        return file.read_text(encoding="utf-8") if file.exists() else None

    def fetch(self, version: str, folder: Path) -> Path:
        """Copy a version's artifacts."""
        return Path(shutil.copytree(self.registry / version / "model", folder / "model", dirs_exist_ok=True))


def open_tracker(root: Path, name: str) -> Tracker:
    """The tracker whose runs are below `root`/wandb, in the project `name`."""
    return WandbTracker(root, name)

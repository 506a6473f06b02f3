"""Where training runs and the registry of models are kept; one file per choice, one interface."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

BACKEND = "{{ cookiecutter.tracking }}"
CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Run:
    """One training: what went in, what came out."""

    name: str
    parameters: Mapping[str, str | int | float | bool]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifacts: Path = field(default=Path())


class Tracker(Protocol):
    """What every choice of tracking can do."""

    def log(self, run: Run) -> str:
        """Record a run with every file of its `artifacts` folder; returns its id."""

    def register(self, run_id: str) -> str:
        """Make the run's artifacts a new version in the registry; returns the version."""

    def set_alias(self, alias: str, version: str) -> None:
        """Point `alias` (champion, challenger) at a version."""

    def version_of(self, alias: str) -> str | None:
        """The version an alias points at, or None."""

    def fetch(self, version: str, folder: Path) -> Path:
        """Copy a version's artifacts below `folder`; returns where they are."""


def open_tracker() -> Tracker:
    """The tracker of this project, with its files beside params.yaml."""
    tracker: Tracker = import_module(f".{BACKEND}", __name__).open_tracker(Path.cwd(), __name__.partition(".")[0])
    return tracker

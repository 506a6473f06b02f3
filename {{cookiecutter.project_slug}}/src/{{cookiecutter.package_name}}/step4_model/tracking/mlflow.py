"""Tracking and registry on MLflow over a local SQLite file.

Look at it with ``mlflow ui --backend-store-uri sqlite:///mlflow.db``, then http://127.0.0.1:5000.
"""

import logging
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ...step1_requirements.checks import StepFailed
from . import Run, Tracker

NOBODY = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow says that there is no such model, and no such alias


class MlflowTracker:
    """See `Tracker`."""

    def __init__(self, root: Path, name: str) -> None:
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri, self.name = f"sqlite:///{(root / 'mlflow.db').as_posix()}", name
        self.client = MlflowClient(self.uri, self.uri)
        mlflow.set_tracking_uri(self.uri)
        self.artifacts = root / "mlartifacts"
        found = self.client.get_experiment_by_name(name)
        if found and found.artifact_location != self.artifacts.as_uri():  # the project was moved, and MLflow keeps whole paths
            name = f"{name} in {root}"
            found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name, self.artifacts.as_uri())

    def log(self, run: Run) -> str:
        """Record a run."""
        run_id: str = self.client.create_run(self.experiment, run_name=run.name, tags=dict(run.tags)).info.run_id
        for key, value in run.parameters.items():
            self.client.log_param(run_id, key, value)
        for key, number in run.metrics.items():
            self.client.log_metric(run_id, key, number)
        self.client.log_artifacts(run_id, str(run.artifacts), "model")
        self.client.set_terminated(run_id)
        return run_id

    def register(self, run_id: str) -> str:
        """Make a run a version."""
        try:
            self.client.get_registered_model(self.name)
        except MlflowException:
            self.client.create_registered_model(self.name)
        source = f"{self.client.get_run(run_id).info.artifact_uri}/model"
        return str(self.client.create_model_version(self.name, source, run_id).version)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias at a version."""
        self.client.set_registered_model_alias(self.name, alias, version)

    def version_of(self, alias: str) -> str | None:
        """The version behind an alias."""
        try:
            return str(self.client.get_model_version_by_alias(self.name, alias).version)
        except MlflowException as error:
            if error.error_code in NOBODY:
                return None
            raise StepFailed(f"the registry cannot say which version is {alias} ({error}); see that {self.uri} can be read, and run again") from None

    def fetch(self, version: str, folder: Path) -> Path:
        """Copy a version's artifacts."""
        found = self.client.get_model_version(self.name, version)
        here = self.artifacts / found.run_id / "artifacts" / "model"  # also when the project was moved since
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=here.as_uri() if here.exists() else found.source, dst_path=str(folder)))


def open_tracker(root: Path, name: str) -> Tracker:
    """The tracker whose database is `root`/mlflow.db."""
    return MlflowTracker(root, name)

"""What must agree across the files of one generated project: a check takes its folder and returns its complaints."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from agree_commands import stages_agree, targets_exist, verbs_exist
from agree_imports import imports_are_declared, imports_resolve, nothing_declared_is_unused, serving_needs_only_its_own
from agree_paths import links_are_alive, paths_exist
from agree_traffic import metrics_agree, ports_agree
from languages import run

Check = Callable[[Path], list[str]]


def layers_hold(folder: Path) -> list[str]:
    program = str(Path(sys.executable).parent / "lint-imports")
    return run([program, "--no-cache", "--no-logo"], folder, **{**os.environ, "PYTHONPATH": str(folder / "src")})


def types_hold(folder: Path) -> list[str]:
    """One cache for all packages, so that only what differs is looked at again."""
    said = run([sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(folder.parent / "mypy")], folder)
    return [line for line in said if ": note: " not in line]


CHECKS: tuple[Check, ...] = (
    imports_resolve,
    imports_are_declared,
    serving_needs_only_its_own,
    nothing_declared_is_unused,
    targets_exist,
    verbs_exist,
    stages_agree,
    paths_exist,
    links_are_alive,
    ports_agree,
    metrics_agree,
)

"""Each distinct output is looked at by the tools of its own language.

A check takes a shelf, which is a folder of numbered boxes shaped like the generated project, and returns its
complaints. Box k holds the k-th distinct output of each file.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lint
import yaml
from variants import Output

Check = Callable[[Path], list[str]]

# What opens a tag of ours; GitHub's own, ${{ }}, is none. In Python a dict in a set would look the same, and lint.py refuses it.
TAG = re.compile(r"(?<!\$)\{\{|\{[%#]|\bcookiecutter\.\w")
PYTHON_M = re.compile(r"python3? -m ([\w.]+)")


@dataclass(frozen=True)
class Tool:
    """A program that takes files of one kind and fails when it finds a mistake."""

    files: str  # a pattern inside the project
    command: str

    def __call__(self, shelf: Path) -> list[str]:
        files = [str(path) for path in sorted(shelf.glob(f"*/{self.files}"))]
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # actionlint calls shellcheck where it finds it
        return run([str(self.program()), *self.command.split()[1:], *files], shelf, **{**os.environ, "PATH": beside}) if files else []

    def program(self) -> str | None:
        """Where it is: beside this Python, on the path, or nowhere."""
        name = self.command.split()[0]
        return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def name_of(check: Check) -> str:
    return check.command if isinstance(check, Tool) else check.__name__


def run(command: Sequence[str], folder: Path, **more: str) -> list[str]:
    """What a failing command says, one complaint a line."""
    result = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=more or None)
    said = (result.stdout + result.stderr).replace(f"{folder}/", "")
    return ([line for line in said.splitlines() if line.strip()] or [f"{command[0]} failed silently"]) if result.returncode else []


def no_tag_left(shelf: Path) -> list[str]:
    return [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: a tag was left"
        for name, path in lint.files(shelf)
        if (match := TAG.search(text := path.read_text(encoding="utf-8")))
    ]


def no_key_twice(shelf: Path) -> list[str]:
    """YAML's reader silently keeps the last one."""
    return [
        f"{name}: {key} twice"
        for name, path in lint.files(shelf)
        if path.suffix in (".yml", ".yaml") and not lint.parse_error(path)
        for node in yaml.compose_all(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        for key in keys_twice(node)
    ]


def keys_twice(node: yaml.Node | None) -> list[str]:
    if isinstance(node, yaml.SequenceNode):
        return [key for inner in node.value for key in keys_twice(inner)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    return [key for key in {*keys} if keys.count(key) > 1] + [key for _, inner in node.value for key in keys_twice(inner)]


def dvc_reads_its_stages(shelf: Path) -> list[str]:
    """By DVC's own schema, and each stage calls the package of this project."""
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA  # takes half a second

    complaints: list[str] = []
    for path in sorted(shelf.glob("*/dvc.yaml")):
        try:
            stages = COMPILED_MULTI_STAGE_SCHEMA(yaml.safe_load(path.read_text(encoding="utf-8")))["stages"]
        except Exception as error:
            complaints.append(f"{path.parent.name}/dvc.yaml: {' '.join(str(error).split())}")
            continue
        package = next(path.parent.glob("src/*")).name
        complaints += [f"dvc.yaml: {name} calls {stage['cmd']}" for name, stage in stages.items() if PYTHON_M.findall(stage["cmd"]) != [package]]
    return complaints


def make_reads_its_targets(shelf: Path) -> list[str]:
    """A dry run of every target, so that nothing is installed or removed."""
    return [
        f"{path.parent.name}/Makefile: {complaint}"
        for path in sorted(shelf.glob("*/Makefile"))
        for complaint in run(["make", "--dry-run", "--always-make", *targets(path.read_text(encoding="utf-8"))], path.parent)
    ]


def targets(makefile: str) -> list[str]:
    return re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE)


TOOLS: tuple[Check, ...] = (
    Tool("**/*.py", "ruff check --no-cache --quiet --output-format concise"),
    Tool("pyproject.toml", "validate-pyproject"),
    Tool("**/Dockerfile", "hadolint"),
    Tool("**/compose.yaml", "check-jsonschema --builtin-schema vendor.compose-spec"),
    Tool(".pre-commit-config.yaml", "pre-commit validate-config"),
    Tool("**/prometheus.yml", "promtool check config --syntax-only"),
    Tool("**/alertmanager.yml", "amtool check-config"),
    Tool(".github/workflows/*.yml", "actionlint"),
    Tool(".github/workflows/*.yml", "zizmor --offline --no-progress --persona=regular"),
    Tool(".github/workflows/*.yml", "check-jsonschema --builtin-schema vendor.github-workflows"),
    Tool(".gitlab-ci.yml", "check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci"),
    Tool("deploy/kubernetes/base/[!ko]*.yaml", "kubernetes-validate --strict"),  # all but kustomization and the operator's own kinds
    Tool("**/*.md", "rumdl check --no-cache --isolated --enable MD042,MD051,MD056,MD086"),
)
CHECKS: tuple[Check, ...] = (
    lint.valid_in_its_language,
    lint.no_trailing_blanks,
    lint.final_newline,
    no_tag_left,
    no_key_twice,
    dvc_reads_its_stages,
    make_reads_its_targets,
    *TOOLS,
)


def shelve(shelf: Path, found: Mapping[str, Sequence[Output]]) -> Path:
    """Every distinct output in its box; every box has what ruff and DVC look for around a file."""
    boxes = max(map(len, found.values()))
    packages = {path.split("/")[1] for path in found if path.startswith("src/")}
    for path, outputs in found.items():
        for box, output in enumerate(outputs):
            write(shelf / str(box) / path, output.text)
    for box in range(boxes):
        for package in packages:
            (shelf / str(box) / "src" / package).mkdir(parents=True, exist_ok=True)
        if not (shelf / str(box) / "pyproject.toml").exists():
            write(shelf / str(box) / "pyproject.toml", found["pyproject.toml"][0].text)
    return shelf


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def explained(complaints: Sequence[str], found: Mapping[str, Sequence[Output]]) -> list[str]:
    """Complaints about a box, followed by the choices that lead to it."""
    return [re.sub(r"\b(\d+)/(\S+?)(?=:|\s|$)", partial(choices_of, found), complaint) for complaint in complaints]


def choices_of(found: Mapping[str, Sequence[Output]], match: re.Match[str]) -> str:
    outputs, box = found.get(match[2], ()), int(match[1])
    choices = outputs[box].choices if box < len(outputs) else {}
    return match[2] + (f" ({', '.join(f'{option}={choice}' for option, choice in choices.items())})" if choices else "")

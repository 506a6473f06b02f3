"""Commands that files tell people and machines to run, and the stages of dvc.yaml with what they read."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from languages import targets
from project import package_of, read_yaml, texts

FLAG = re.compile(r"(?<!\S)--[a-z][\w-]*")


def targets_exist(folder: Path) -> list[str]:
    """Every `make x` that a file tells people to type."""
    known = set(targets(texts(folder)["Makefile"]))
    return [f"{file}: there is no make {name}" for file, text in texts(folder).items() for name in told(file, text) if name not in known]


def told(file: str, text: str) -> list[str]:
    """The targets in `make x`, in what CI and the devcontainer run, and in Markdown where a code block's line begins with make."""
    found = re.findall(r"`make ([a-z][\w-]*)", text)
    if file.endswith((".yml", "devcontainer.json")):
        found += re.findall(r"""^\s*(?:- |run: |- run: |.*[":] *"?)make ([a-z][\w-]*)""", text, re.MULTILINE)
    for block in re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) if file.endswith(".md") else []:
        found += re.findall(r"^\s*(?:\$ )?make ([a-z][\w-]*)", block, re.MULTILINE)
    return found


def verbs_exist(folder: Path) -> list[str]:
    """Every `python -m package verb --flag` in any file, with its flags; also in the list form of containers."""
    known = verbs(folder)
    call = re.compile(rf'-m[", ]+(?:{package_of(folder)}|PACKAGE)[", ]+([a-z][\w-]*)((?: [^`\n|;&#]*)?)')
    complaints: list[str] = []
    for file, text in texts(folder).items():
        for verb, rest in call.findall(text):
            complaints += [f"{file}: there is no verb {verb}"] if verb not in known else []
            complaints += [f"{file}: {verb} has no {flag}" for flag in FLAG.findall(rest) if flag not in known.get(verb, [flag])]
    return complaints


VERBS = """
import json, sys, typer
from importlib import import_module
group = typer.main.get_command(import_module(sys.argv[1] + ".__main__").app)
print(json.dumps({name: [flag for option in verb.params for flag in option.opts] for name, verb in group.commands.items()}))
"""
_verbs: dict[str, dict[str, list[str]]] = {}


def verbs(folder: Path) -> dict[str, list[str]]:
    """Every verb with its flags, as the program itself tells them; asked once for each distinct __main__.py."""
    package = package_of(folder)
    main = texts(folder)[f"src/{package}/__main__.py"]
    if main not in _verbs:
        _verbs[main] = json.loads(output([sys.executable, "-B", "-c", VERBS, package], folder))
    return _verbs[main]


def output(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


def stages(folder: Path) -> dict[str, Any]:
    """dvc.yaml's stages, its variables filled in."""
    text = texts(folder)["dvc.yaml"]
    for variables in read_yaml(text).get("vars", []):
        for name, value in variables.items():
            text = text.replace(f"${{{name}}}", str(value))
    found: dict[str, Any] = read_yaml(text)["stages"]
    return found


def path_of(entry: Any) -> str:
    return str(next(iter(entry)) if isinstance(entry, dict) else entry)


def made(folder: Path) -> list[str]:
    """The paths that stages write."""
    return [path_of(entry) for stage in stages(folder).values() for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]


def stages_agree(folder: Path) -> list[str]:
    """What a stage reads is in the bake, made by an earlier stage, or sample data; its parameters are in params.yaml."""
    params = read_yaml(texts(folder)["params.yaml"])
    there = [*texts(folder), params["data"]["raw"]]
    complaints: list[str] = []
    for name, stage in stages(folder).items():
        if not stage["cmd"].endswith(f" {name}"):
            complaints.append(f"dvc.yaml: {name} runs {stage['cmd']}")
        complaints += [f"dvc.yaml: {name} needs {path}, which nothing makes" for path in stage.get("deps", []) if not near(path, there)]
        complaints += [f"dvc.yaml: {name} reads {key}, which params.yaml lacks" for key in stage.get("params", []) if not has(params, key)]
        there += [path_of(entry) for entry in (*stage.get("outs", []), *stage.get("metrics", []))]
    return complaints


def near(path: str, there: Iterable[str]) -> bool:
    """Whether the path is one of those, inside one or around one."""
    return any(known == path or known.startswith(f"{path}/") or path.startswith(f"{known}/") for known in there)


def has(tree: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True

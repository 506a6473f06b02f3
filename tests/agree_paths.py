"""Paths and links that files mention."""

import ast
import fnmatch
import functools
import os
import re
import sys
from pathlib import Path

import lint
from agree_commands import made, near
from languages import run
from project import modules, package_of, read_yaml, texts

PLACES = ("src", "tests", "deploy", "data", "models", "reports")
MADE = ("data/", "models/", "reports/")  # by running; the other places are in the bake
NO_PATHS = (".dvc/", ".pre-commit-config.yaml")  # regular expressions look like paths


def paths_exist(folder: Path) -> list[str]:
    """A path that a file tells of is in the bake, or made: by a stage, or by code and params.yaml that know its parts."""
    there, words = [*texts(folder), *made(folder)], words_of(folder)
    mention = re.compile(rf"(?<![\w./<-])((?:{'|'.join(PLACES)})/[\w./*-]*[\w*])")
    return [
        f"{file}: there is no {path}"
        for file, text in texts(folder).items()
        if file.endswith(".md") or not file.startswith((*NO_PATHS, "src/", "tests/"))
        for path in mention.findall(text.replace("PACKAGE", package_of(folder)))
        if not near(path, there) and not fnmatch.filter(there, path) and not (path.startswith(MADE) and {*path.split("/")} <= words)
    ]


def words_of(folder: Path) -> set[str]:
    """Every part of what could be a path in the code's strings and in params.yaml."""
    strings = {word for tree in modules(folder).values() for word in words_in(tree)}
    return strings | {part for leaf in lint.leaves(read_yaml(texts(folder)["params.yaml"])) for part in leaf.split("/")}


@functools.cache
def words_in(tree: ast.Module) -> set[str]:
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {part for text in strings for part in text.split("/")}


def links_are_alive(folder: Path) -> list[str]:
    """Links and fragments in Markdown; what a stage makes is not there yet."""
    command = [str(Path(sys.executable).parent / "rumdl"), "check", "--no-cache", "--isolated", "--enable", "MD051,MD057", "."]
    dead = [line for line in run(command, folder) if "MD0" in line]
    return [line for line in dead if not any(near(path, made(folder)) for path in targets_of(line))]


def targets_of(complaint: str) -> list[str]:
    """The links that a complaint names, as paths from the project's folder."""
    home = os.path.dirname(complaint.split(":")[0])
    return [os.path.normpath(os.path.join(home, link)) for link in re.findall(r"'([^']+)'", complaint)]

"""A generated project's files, read and parsed once however many checks look at them."""

import ast
import functools
from pathlib import Path

import lint
import yaml

parse = functools.cache(ast.parse)
read_yaml = functools.cache(yaml.safe_load)


@functools.cache
def texts(folder: Path) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in lint.files(folder)}


def package_of(folder: Path) -> str:
    return next(name.split("/")[1] for name in texts(folder) if name.startswith("src/"))


def modules(folder: Path) -> dict[str, ast.Module]:
    """The package's modules by dotted name; a package goes by its own name, without __init__."""
    python = {name: text for name, text in texts(folder).items() if name.startswith("src/") and name.endswith(".py")}
    return {module_name(name): parse(text) for name, text in python.items()}


def module_name(file: str) -> str:
    return file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")

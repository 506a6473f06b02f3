"""Refuses bad answers before anything is written: every mistake at once, each with what to type instead.

The answers arrive as JSON inside a raw string, where quotes, backslashes and emoji cannot break out: JSON
escapes each of them. Standard library only, no network.
"""

import json
import keyword
import re
import sys
from collections.abc import Iterator, Mapping

ANSWERS = r"""{{ cookiecutter | jsonify }}"""
# As typed, before Jinja saw them; an update does not hand them over.
TYPED = r"""{{ _cookiecutter | default({}) | jsonify }}"""

TEXTS = {
    "project_name": "Fraud Detection",
    "description": "Stops card fraud before it costs money",
    "author": "Payments Team",
}
TEXT_LENGTH, SLUG_LENGTH, PACKAGE_LENGTH = 200, 60, 40
JINJA = re.compile(r"\{[%#{]")
# Not printable for Python, yet part of names: two wide spaces, and the joiners of Persian and of emoji.
NAME_CHARACTERS = "\u00a0\u3000\u200c\u200d"

DEVICES = {"con", "nul", "aux", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
KEYWORDS = {*(word.lower() for word in keyword.kwlist), *keyword.softkwlist, "match", "case", "type"}
# Folders of the generated project that a package of the same name would hide.
FOLDERS = {"src", "tests", "data", "models", "reports", "deploy", "docs", "systems", "licenses"}
# What the project installs, by import name and by distribution name (dashes as underscores).
INSTALLED = """
    pandas numpy scipy sklearn scikit_learn duckdb pyarrow pandera pydantic pydantic_core pydantic_settings fastapi
    starlette uvicorn httptools uvloop anyio h11 onnx onnxruntime skl2onnx google protobuf mlflow mlflow_skinny dvc optuna
    sqlalchemy alembic ruamel ruamel_yaml joblib typer click rich yaml pyyaml matplotlib prometheus_client filelock
    pytest _pytest hypothesis httpx requests ruff mypy importlinter import_linter grimp xdist pytest_xdist cruft
    cookiecutter jinja2 setuptools pip hatchling uv uv_build wheel packaging attr attrs jsonschema evidently xgboost
    charset_normalizer psycopg psycopg_binary schemathesis lightgbm wandb torch tqdm typing_extensions pandas_stubs types_pyyaml pre_commit
    airflow apache_airflow prefect dagster dagster_webserver dvc_s3 dvc_gs dvc_azure
    """
TAKEN = {*INSTALLED.split()}


def text_mistakes(name: str, value: str) -> Iterator[str]:
    """What is wrong with an answer that people read; it may be anything printable."""
    strange = next((c for c in value if not (c.isprintable() or c in NAME_CHARACTERS)), None)
    if not value.strip():
        yield f"{name} is empty; type some text, such as {TEXTS[name]}."
    if strange is not None:
        yield f"{name} has the character U+{ord(strange):04X}, which cannot be printed; type one line of plain text, such as {TEXTS[name]}."
    if len(value) > TEXT_LENGTH:
        yield f"{name} has {len(value)} characters; type at most {TEXT_LENGTH}."
    if JINJA.search(value):
        yield name + " has { followed by {, % or #, which an update would evaluate; put a space between them."


def slug_mistakes(slug: str) -> Iterator[str]:
    """What is wrong with the name of the new folder, which is the distribution's name too."""
    if not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", slug):
        yield f"project_slug is {shown(slug)}; type lower-case letters, digits and dashes, a letter first, such as fraud-detection."
    elif len(slug) > SLUG_LENGTH:
        yield f"project_slug has {len(slug)} characters; type at most {SLUG_LENGTH}."
    elif slug in DEVICES:
        yield f"project_slug is {shown(slug)}, a device on Windows; type another, such as {slug}-system."
    elif re.sub("[-_]+", "_", slug) in TAKEN:
        yield f"project_slug is {shown(slug)}, a package that the project may install; type another, such as {slug}-system."


def package_mistakes(package: str) -> Iterator[str]:
    """What is wrong with the name that is imported."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package):
        yield f"package_name is {shown(package)}; type lower-case letters, digits and underscores, a letter first, such as fraud_detection."
    elif len(package) > PACKAGE_LENGTH:
        yield f"package_name has {len(package)} characters; type at most {PACKAGE_LENGTH}."
    elif owner := taken_by(package):
        yield f"package_name is {shown(package)}, {owner}; type another, such as {package}_system."


def taken_by(package: str) -> str:
    """Who else has this name; empty when nobody has."""
    owners = {
        "a word of Python itself": KEYWORDS,
        "a module of Python's standard library": sys.stdlib_module_names,
        "a device on Windows": DEVICES,
        "a package that the project may install": TAKEN,
        "a folder of the project": FOLDERS,
    }
    return next((owner for owner, names in owners.items() if package in names), "")


def shown(value: str) -> str:
    """A short ASCII form, since a console may not show every character."""
    return ascii(value if len(value) <= SLUG_LENGTH else value[:SLUG_LENGTH] + "...")


def mistakes(answers: Mapping[str, object], typed: Mapping[str, object]) -> list[str]:
    """Every mistake as a sentence; typed are the answers before Jinja evaluated them."""
    found: list[str] = []
    for name in TEXTS:
        value, before = str(answers[name]), str(typed.get(name, ""))
        found += text_mistakes(name, before if JINJA.search(before) else value)
    found += slug_mistakes(str(answers["project_slug"]))
    found += package_mistakes(str(answers["package_name"]))
    return found


def main() -> int:
    found = mistakes(json.loads(ANSWERS), json.loads(TYPED))
    for mistake in found:
        print(mistake, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Imports against files and against pyproject.toml: all are there, all are declared, and nothing else is."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from project import module_name, modules, package_of, parse, texts

# Distributions that are imported by another name than their own.
IMPORTED_AS = {
    "scikit_learn": "sklearn",
    "pyyaml": "yaml",
    "ruamel.yaml": "ruamel",
    "protobuf": "google",
    "apache_airflow": "airflow",
    "import_linter": "importlinter",
}
# Requirements that no file imports, and why they are needed all the same.
NOT_IMPORTED = {
    "dvc": "run as a program",
    "protobuf": "a bound for skl2onnx",
    "tqdm": "optuna's progress bar",
    "httpx": "the web framework's test client",
    "pre_commit": "run as a program",
    "pytest_xdist": "pytest -n",
}
SERVE = "serve"  # the verb that the container runs


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, str]]:
    """What a syntax tree imports: the module's absolute name, and the name taken from it or nothing."""
    home = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


@functools.cache
def imports_of_file(file: str, text: str) -> list[tuple[str, str]]:
    return list(imports(parse(text), module_name(file), file.endswith("/__init__.py")))


def imports_resolve(folder: Path) -> list[str]:
    """What one file of the project takes from another is there."""
    known, package = modules(folder), package_of(folder)
    return [
        f"{file}: {source} has no {name}" if source in known else f"{file}: there is no {source}"
        for file, text in texts(folder).items()
        if file.endswith(".py")
        for source, name in imports_of_file(file, text)
        if source.split(".")[0] == package and not (source in known and (not name or f"{source}.{name}" in known or name in names(known[source])))
    ]


@functools.cache
def names(tree: ast.Module) -> set[str]:
    """Everything that is given a name somewhere in a module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def requirements(folder: Path) -> dict[str, set[str]]:
    """Normalised names of what is declared: for serving (base), on top of that (extra, and groups but dev), and for work on the project (dev)."""
    about = tomllib.loads(texts(folder)["pyproject.toml"])
    project, groups = about["project"], about.get("dependency-groups", {})
    apart = [lines for group, lines in groups.items() if group != "dev"]
    extras = [line for lines in (*project.get("optional-dependencies", {}).values(), *apart) for line in lines]
    dev = [line for line in groups.get("dev", []) if isinstance(line, str)]
    return {"base": normalised(project["dependencies"]), "extra": normalised(extras), "dev": normalised(dev)}


def normalised(lines: Iterable[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", line) for line in lines)
    return {match[0].lower().replace("-", "_") for match in found if match}


def imported_as(requirement: str) -> str:
    return IMPORTED_AS.get(requirement, requirement)


def third_party(found: Iterable[tuple[str, str]], folder: Path) -> set[str]:
    """Top-level names from outside the standard library and the project."""
    own = {package_of(folder), "tests", *(Path(file).stem for file in texts(folder) if file.startswith("tests/"))}
    return tops(found) - own - sys.stdlib_module_names


def tops(*found: Iterable[tuple[str, str]]) -> set[str]:
    return {source.split(".")[0] for each in found for source, _ in each}


def imports_are_declared(folder: Path) -> list[str]:
    """In pyproject.toml or, for files with an environment of their own, in the requirements.txt beside them."""
    declared = {part: {imported_as(name) for name in found} for part, found in requirements(folder).items()}
    shipped = declared["base"] | declared["extra"]
    found = []
    for file, text in texts(folder).items():
        if file.endswith(".py"):
            beside = texts(folder).get(f"{file.rpartition('/')[0]}/requirements.txt")
            own = {imported_as(name) for name in normalised(beside.splitlines())} if beside else shipped
            where = "the requirements.txt beside it" if beside else "pyproject.toml"
            lacking = third_party(imports_of_file(file, text), folder) - own - (declared["dev"] if file.startswith("tests/") else set())
            found += [f"{file}: imports {name}, which {where} does not declare" for name in sorted(lacking)]
    return found


def serving_needs_only_its_own(folder: Path) -> list[str]:
    """What `serve` imports is among the base dependencies, which are all that the container installs."""
    base = {imported_as(name) for name in requirements(folder)["base"]}
    return [
        f"{module}: imports {name} while serving, which is no base dependency"
        for module, found in serving(folder).items()
        for name in sorted(third_party(found, folder) - base)
    ]


def serving(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The modules that `serve` reaches, and what each imports when it is loaded."""
    known, package = modules(folder), package_of(folder)
    entry = f"{package}.__main__"
    serve = next(node for node in known[entry].body if isinstance(node, ast.FunctionDef) and node.name == SERVE)
    reached = {entry: [*loaded(known, folder, entry), *imports(serve, entry, False)]}
    todo = [entry]
    while todo:
        for module in internal(known, reached[todo.pop()]):
            if module not in reached:
                reached[module] = loaded(known, folder, module)
                todo.append(module)
    return reached


def loaded(known: dict[str, ast.Module], folder: Path, module: str) -> list[tuple[str, str]]:
    """What a module imports when it is loaded: not inside functions, not for type checkers only."""
    is_package = f"src/{module.replace('.', '/')}/__init__.py" in texts(folder)
    return [found for node in known[module].body if not is_later(node) for found in imports(node, module, is_package)]


def is_later(node: ast.stmt) -> bool:
    for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    return for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def internal(known: dict[str, ast.Module], found: Iterable[tuple[str, str]]) -> set[str]:
    """The project's own modules among imports, with the packages they are in."""
    direct = {f"{source}.{name}" if f"{source}.{name}" in known else source for source, name in found}
    return {module for name in direct & known.keys() for module in parents(name)} & known.keys()


def parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def nothing_declared_is_unused(folder: Path) -> list[str]:
    """Every requirement is imported by what it is declared for, or its reason stands above."""
    declared = requirements(folder)
    files = {file: imports_of_file(file, text) for file, text in texts(folder).items() if file.endswith(".py")}
    in_src, in_tests = (tops(*(found for file, found in files.items() if file.startswith(part))) for part in ("src/", "tests/"))
    in_serving = tops(*serving(folder).values())
    used = {"base": in_serving, "extra": in_src, "dev": in_src | in_tests | tools(folder)}
    return [
        f"pyproject.toml: nothing in {part} needs {requirement}"
        for part, found in declared.items()
        for requirement in sorted(found - NOT_IMPORTED.keys())
        if imported_as(requirement) not in used[part] and typed_by(requirement) not in declared["base"] | declared["extra"]
    ]


def tools(folder: Path) -> set[str]:
    """Programs that have their settings in pyproject.toml."""
    return set(tomllib.loads(texts(folder)["pyproject.toml"])["tool"])


def typed_by(stubs: str) -> str:
    return stubs.removeprefix("types_").removesuffix("_stubs") if stubs.startswith("types_") or stubs.endswith("_stubs") else ""

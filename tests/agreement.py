"""What must agree across the files of one generated project: a check takes its folder and returns its complaints."""

import ast
import fnmatch
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lint
import yaml
from languages import run, targets

Check = Callable[[Path], list[str]]

# Distributions that are imported by another name than their own.
IMPORTED_AS = {"scikit_learn": "sklearn", "pyyaml": "yaml", "ruamel.yaml": "ruamel", "protobuf": "google", "import_linter": "importlinter"}
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
PLACES = ("src", "tests", "deploy", "data", "models", "reports")
MADE = ("data/", "models/", "reports/")  # by running; the other places are in the bake
NO_PATHS = (".dvc/", ".pre-commit-config.yaml")  # regular expressions look like paths
HERE, OURS = "this machine", "the service"
OTHERS = {"5000": "mlflow ui"}  # programs that listen here and are no service of the project
COMPOSE = re.compile(r"compose[\w.]*\.ya?ml$")


@functools.cache
def texts(folder: Path) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in lint.files(folder)}


def package_of(folder: Path) -> str:
    return next(name.split("/")[1] for name in texts(folder) if name.startswith("src/"))


parse = functools.cache(ast.parse)
read_yaml = functools.cache(yaml.safe_load)


# ---- imports and requirements -------------------------------------------------------------


def modules(folder: Path) -> dict[str, ast.Module]:
    """The package's modules by dotted name; a package goes by its own name, without __init__."""
    python = {name: text for name, text in texts(folder).items() if name.startswith("src/") and name.endswith(".py")}
    return {module_name(name): parse(text) for name, text in python.items()}


def module_name(file: str) -> str:
    return file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


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
    """Normalised names of what is declared: for serving (base), on top of that (extra), and for work on the project (dev)."""
    about = tomllib.loads(texts(folder)["pyproject.toml"])
    project, groups = about["project"], about.get("dependency-groups", {})
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    dev = [line for lines in groups.values() for line in lines if isinstance(line, str)]
    return {"base": normalised(project["dependencies"]), "extra": normalised(extras), "dev": normalised(dev)}


def normalised(lines: Iterable[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", line) for line in lines)
    return {match[0].lower().replace("-", "_") for match in found if match}


def imported_as(requirement: str) -> str:
    return IMPORTED_AS.get(requirement, requirement)


def third_party(found: Iterable[tuple[str, str]], folder: Path) -> set[str]:
    """Top-level names from outside the standard library and the project."""
    tops = {source.split(".")[0] for source, _ in found}
    own = {package_of(folder), "tests", *(Path(file).stem for file in texts(folder) if file.startswith("tests/"))}
    return tops - own - sys.stdlib_module_names


def imports_are_declared(folder: Path) -> list[str]:
    declared = {part: {imported_as(name) for name in found} for part, found in requirements(folder).items()}
    allowed = {"src": declared["base"] | declared["extra"], "tests": declared["base"] | declared["extra"] | declared["dev"]}
    return [
        f"{file}: imports {name}, which pyproject.toml does not declare"
        for file, text in texts(folder).items()
        if file.endswith(".py") and file.split("/")[0] in allowed
        for name in sorted(third_party(imports_of_file(file, text), folder) - allowed[file.split("/")[0]])
    ]


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
    lazy = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = [node for node in known[module].body if not isinstance(node, lazy) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node))]
    return [found for node in body for found in imports(node, module, is_package)]


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
    trees = {part: [imports_of_file(f, t) for f, t in texts(folder).items() if f.endswith(".py") and f.startswith(part)] for part in ("src/", "tests/")}
    in_src, in_tests = ({source.split(".")[0] for found in trees[part] for source, _ in found} for part in ("src/", "tests/"))
    in_serving = {source.split(".")[0] for found in serving(folder).values() for source, _ in found}
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


# ---- commands -----------------------------------------------------------------------------


def targets_exist(folder: Path) -> list[str]:
    """Every `make x` that a file tells people to type."""
    known = set(targets(texts(folder)["Makefile"]))
    return [f"{file}: there is no make {name}" for file, text in texts(folder).items() for name in told("make", file, text) if name not in known]


def told(program: str, file: str, text: str) -> list[str]:
    """The words that follow a program's name in `code`, and in Markdown where a code block's line begins with it."""
    found = re.findall(rf"`{program} ([a-z][\w-]*)", text)
    for block in re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) if file.endswith(".md") else []:
        found += re.findall(rf"^\s*(?:\$ )?{program} ([a-z][\w-]*)", block, re.MULTILINE)
    return found


def verbs_exist(folder: Path) -> list[str]:
    """Every `python -m package verb --flag` in any file, with its flags; also in the list form of containers."""
    known = verbs(folder)
    call = re.compile(rf'-m[", ]+(?:{package_of(folder)}|PACKAGE)[", ]+([a-z][\w-]*)((?: [^`\n|;&#]*)?)')
    complaints: list[str] = []
    for file, text in texts(folder).items():
        for verb, rest in call.findall(text):
            complaints += [f"{file}: there is no verb {verb}"] if verb not in known else []
            complaints += [f"{file}: {verb} has no {flag}" for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", rest) if flag not in known.get(verb, [flag])]
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


# ---- stages, paths, links -----------------------------------------------------------------


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
    dead = [line for line in run(command, folder) if re.search(r"\[?MD0", line)]
    return [line for line in dead if not any(near(path, made(folder)) for path in re.findall(r"'([^']+)'", line))]


# ---- ports and metrics --------------------------------------------------------------------


def ports_agree(folder: Path) -> list[str]:
    """Everybody speaks to a service at one port, and to this machine at a port where somebody listens."""
    spoken = sorted({(host, port, file) for file, text in texts(folder).items() for host, port in spoken_to(folder, file, text)})
    ports: dict[str, set[str]] = {}
    for host, port, _ in spoken:
        ports.setdefault(host, set()).add(port)
    ports[HERE] = published(folder) | ports[OURS] | OTHERS.keys()
    return [
        f"{file}: {host} is spoken to at {port}, elsewhere at {', '.join(sorted(ports[host] - {port}))}"
        for host, port, file in spoken
        if (port not in ports[HERE] if host == HERE else len(ports[host]) > 1)
    ]


def spoken_to(folder: Path, file: str, text: str) -> set[tuple[str, str]]:
    """Host and port, as a file mentions or settles them."""
    names = "|".join(map(re.escape, services(folder))) or "nobody"
    found = set(re.findall(rf"(?<![\w./-])({names}):(\d{{2,5}})\b", text))
    found |= {(HERE, port) for port in re.findall(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|(?<=[\s,])):(\d{4,5})\b", text)}
    found |= {(OURS, port) for port in re.findall(r"(?:^EXPOSE |DEPLOYMENT__PORT[=: \"]+)(\d+)", text, re.MULTILINE)}
    if file == "params.yaml":
        found.add((OURS, str(read_yaml(text)["deployment"]["port"])))
    if COMPOSE.search(file):
        found |= {(name, port.split(":")[-1]) for name, port in mapped(folder)}
        found |= {(OURS, port.split(":")[-2]) for name, port in mapped(folder) if built(folder, name)}
    return {(OURS if host in services(folder) and built(folder, host) else host, port) for host, port in found}


def services(folder: Path) -> dict[str, Any]:
    composed = [read_yaml(text) for file, text in texts(folder).items() if COMPOSE.search(file)]
    return {name: service for compose in composed for name, service in compose["services"].items()}


def built(folder: Path, name: str) -> bool:
    return "build" in services(folder)[name]


def mapped(folder: Path) -> list[tuple[str, str]]:
    """host:container of every port that compose opens."""
    return [(name, str(port)) for name, service in services(folder).items() for port in service.get("ports", [])]


def published(folder: Path) -> set[str]:
    return {port.split(":")[-2] for _, port in mapped(folder)}


SUFFIXES = {"Counter": ("_total", "_created"), "Histogram": ("_bucket", "_sum", "_count", "_created"), "Summary": ("_sum", "_count"), "Gauge": ("",)}
BUILT_IN = {"up", "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


def metrics_agree(folder: Path) -> list[str]:
    """Alerts, dashboards and autoscalers ask for metrics that the service or the monitor shows."""
    shown = exported(folder)
    return [
        f"{file}: nobody shows {name}"
        for file, text in texts(folder).items()
        if shown
        for query in queries(file, text)
        for name in sorted(asked_for(query) - shown)
    ]


def exported(folder: Path) -> set[str]:
    """Names of the metrics that the package's code makes."""
    return {name for tree in modules(folder).values() for name in metrics_in(tree)}


@functools.cache
def metrics_in(tree: ast.Module) -> set[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args]
    made = [(call.args[0].value, call.func.id) for call in calls if isinstance(call.func, ast.Name) and isinstance(call.args[0], ast.Constant)]
    return {f"{name}{suffix}" for name, kind in made for suffix in SUFFIXES.get(kind, ())}


@functools.cache
def queries(file: str, text: str) -> list[str]:
    """What stands under `expr` in YAML and JSON, and metrics with a label or a window in Python's strings."""
    if file.endswith((".yml", ".yaml", ".json")):
        return [query for tree in lint.PARSERS[Path(file).suffix](text) for query in under("expr", tree)] if "expr" in text else []
    if not (file.startswith("src/") and file.endswith(".py")):
        return []
    return re.findall(r"\b[a-z]+(?:_[a-z]+)*_(?:total|bucket|sum|count)(?=[\[{])", text)


def under(key: str, tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from [inner] if name == key and isinstance(inner, str) else under(key, inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from under(key, inner)


def asked_for(query: str) -> set[str]:
    """Metric names in PromQL: what is left without strings, labels, windows, grouping, placeholders, functions and keywords."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)|[@$]\w+', " ", query)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - BUILT_IN


# ---- the package's own tools: once for each distinct package -------------------------------


def layers_hold(folder: Path) -> list[str]:
    program = str(Path(sys.executable).parent / "lint-imports")
    return run([program, "--no-cache", "--no-logo"], folder, **{**os.environ, "PYTHONPATH": str(folder / "src")})


def types_hold(folder: Path) -> list[str]:
    return run([sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(folder.parent / "mypy")], folder)


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

"""Rules that every file of the template obeys before it is rendered.

A rule takes a folder shaped like this repository and returns its complaints, "path: what is wrong".
"""

import ast
import io
import json
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from binaryornot.check import is_binary

PROJECT = "{{cookiecutter.project_slug}}"
PACKAGE = "{{cookiecutter.package_name}}"
# Files where a Jinja block is allowed, with the reason; CONTRIBUTING lists the same ones.
BLOCKS_ALLOWED: dict[str, str] = {}
# Answers that people write freely: bare only where any text is harmless, else through their escaped __ twins.
RAW_TEXT = re.compile(r"\{\{ cookiecutter\.(project_name|description|author)\b")
# The one tag outside a string: how the project's tests name the package they import.
TEST_IMPORT = re.compile(r"^(from|import) \{\{ ?cookiecutter\.package_name ?\}\}", re.MULTILINE)
ANY_TEXT = re.compile(r"\{\{ cookiecutter\.(__)?(project_name|description|author)\b")
# Ours, or one that leaves GitHub's own, ${{ }}, behind.
OUR_TAG = re.compile(r"\{\{ ?_?cookiecutter\b|\{\{ '[^'{}]*(\$\{\{ [\w.]+ \}\}[^'{}]*)+' \}\}")
NETWORK = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "asyncio", "subprocess", "webbrowser", "xmlrpc"}
DEVICES = {"con", "nul", "aux", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}

Rule = Callable[[Path], list[str]]


def files(root: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    """Path from the root and full path of each file."""
    for path in sorted((root / inside).rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(root).parts:
            yield path.relative_to(root).as_posix(), path


def rendered(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of each file that Jinja renders: the project's and the hooks."""
    for inside in (PROJECT, "hooks"):
        for name, path in files(root, inside):
            if not undecodable(path):
                yield name, read(path)


def read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return TEST_IMPORT.sub(r"\1 package", text) if path.parent.name == "tests" else text


def undecodable(path: Path) -> str:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return ""


def load_yaml(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


PARSERS: dict[str, Callable[[str], Any]] = {
    ".py": ast.parse,
    ".toml": tomllib.loads,
    ".yaml": load_yaml,
    ".yml": load_yaml,
    ".json": json.loads,
}


def valid_in_its_language(root: Path) -> list[str]:
    return [f"{name}: {error}" for name, path in files(root) if (error := parse_error(path))]


def parse_error(path: Path) -> str:
    if error := undecodable(path):
        return error
    try:
        PARSERS.get(path.suffix, str)(read(path))
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def tags_only_in_strings(root: Path) -> list[str]:
    """Not in names, numbers or comments, where they would hide from the language's own tools."""
    return [
        f"{name}: a tag stands outside a string"
        for name, text in rendered(root)
        if (strings := STRINGS.get(Path(name).suffix))
        and not parse_error(root / name)
        and sum(s.count("{{") for s in strings(text)) < text.count("{{")
    ]


def python_strings(text: str) -> Iterator[str]:
    kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return (token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in kinds)


def yaml_strings(text: str) -> Iterator[str]:
    """Every scalar that cannot break: names are checked, but in a plain one a free text's colon or # would."""
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken):
            scalar = text[token.start_mark.index : token.end_mark.index]
            if token.style == '"' or not ANY_TEXT.search(scalar):
                yield scalar


def leaves(value: Any) -> Iterator[str]:
    """Every string in parsed TOML or JSON, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *leaves(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value


STRINGS: dict[str, Callable[[str], Iterator[str]]] = {
    ".py": python_strings,
    ".yaml": yaml_strings,
    ".yml": yaml_strings,
    ".toml": lambda text: leaves(tomllib.loads(text)),
    ".json": lambda text: leaves(json.loads(text)),
}


def no_blocks(root: Path) -> list[str]:
    return [f"{name}: a Jinja block or comment" for name, text in rendered(root) if re.search(r"\{[%#]", text) and name not in BLOCKS_ALLOWED]


def only_our_tags(root: Path) -> list[str]:
    """An f-string's doubled brace, Grafana's or GitHub's own tag: Jinja would take it for one of its."""
    return [
        f"{name}:{OUR_TAG.sub('', text)[: match.start()].count(chr(10)) + 1}: doubled braces that are no tag of ours"
        for name, text in rendered(root)
        for match in re.finditer(r"\{\{", OUR_TAG.sub("", text))
    ]


def free_text_is_escaped(root: Path) -> list[str]:
    """A quote or a backslash in a bare answer breaks TOML, YAML, JSON, Python and shell."""
    return [
        f"{name}: {match[1]} is not escaped; use cookiecutter.__{match[1]} in double quotes"
        for name, text in rendered(root)
        if not (name.endswith(".md") or name.startswith(f"{PROJECT}/licenses/"))
        for match in RAW_TEXT.finditer(text)
    ]


def no_conditional_names(root: Path) -> list[str]:
    names = [name for name, _ in files(root)]
    return [
        f"{name}: a name may only contain {PROJECT} and {PACKAGE}"
        for name in names
        if re.search(r"[{}%]", name.replace(PROJECT, "").replace(PACKAGE, ""))
    ]


def names_that_windows_takes(root: Path) -> list[str]:
    """Devices, odd characters, trailing dots and blanks, and names that differ only in case."""
    names = [name for name, _ in files(root)]
    folded = Counter(name.lower() for name in names)
    return [f"{name}: Windows refuses this name" for name in names if any(refused_by_windows(part) for part in name.split("/"))] + [
        f"{name}: another name differs only in case" for name in names if folded[name.lower()] > 1
    ]


def refused_by_windows(part: str) -> bool:
    return part.split(".")[0].lower() in DEVICES or part.endswith((".", " ")) or bool(re.search(r'[<>:"|?*\\\x00-\x1f]', part))


def no_trailing_blanks(root: Path) -> list[str]:
    return [f"{name}:{number}: trailing blank" for name, path in files(root) for number, line in enumerate(lines(path), 1) if line != line.rstrip()]


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "replace").split("\n")


def final_newline(root: Path) -> list[str]:
    """One, so that concatenation and diffs behave; an empty file needs none."""
    return [
        f"{name}: needs exactly one newline at its end"
        for name, path in files(root)
        if (text := path.read_bytes()) and not re.search(rb"[^\n]\n\Z", text)
    ]


def nothing_binary(root: Path) -> list[str]:
    """Cookiecutter copies what it takes for binary unrendered."""
    return [f"{name}: cookiecutter takes it for binary" for name, path in files(root) if path.stat().st_size and is_binary(str(path))]


def hooks_need_only_python(root: Path) -> list[str]:
    return [
        f"{name}: imports {module}"
        for name, path in files(root, "hooks")
        if path.suffix == ".py" and not parse_error(path)
        for module in imported(path)
        if module not in sys.stdlib_module_names or module in NETWORK
    ]


def imported(path: Path) -> Iterator[str]:
    """The top-level names of what a file imports from outside its own package."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]


def no_package_hosts(root: Path) -> list[str]:
    """Where packages come from is each user's own setting."""
    places = re.compile(r"index[-_]url|\[\[tool\.uv\.index\]\]|files\.pythonhosted\.org")
    return [f"{name}: a lock file" for name, _ in files(root) if name.endswith("uv.lock")] + [
        f"{name}: names a package index" for name, text in rendered(root) if places.search(text)
    ]


RULES: list[Rule] = [
    valid_in_its_language,
    tags_only_in_strings,
    no_blocks,
    only_our_tags,
    free_text_is_escaped,
    no_conditional_names,
    names_that_windows_takes,
    no_trailing_blanks,
    final_newline,
    nothing_binary,
    hooks_need_only_python,
    no_package_hosts,
]

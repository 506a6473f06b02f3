"""Ports and metric names: whoever asks, asks where and for what somebody answers."""

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lint
from project import modules, read_yaml, texts

HERE, OURS = "this machine", "the service"
OTHERS = {"5000": "mlflow ui"}  # programs that listen here and are no service of the project
COMPOSE = re.compile(r"compose[\w.]*\.ya?ml$")


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
    if file.startswith("deploy/kubernetes/base/"):
        found |= {(OURS, port) for port in in_cluster(text) - in_cluster(texts(folder)["deploy/kubernetes/base/monitor.yaml"])}
    if file.endswith("devcontainer.json"):
        found |= {(OURS, str(port)) for port in json.loads(text)["forwardPorts"]}
    if COMPOSE.search(file):
        found |= {(name, port.split(":")[-1]) for name, port in mapped(folder)}
        found |= {(OURS, port.split(":")[-2]) for name, port in mapped(folder) if built(folder, name)}
    return {(OURS if host in services(folder) and built(folder, host) else host, port) for host, port in found}


def in_cluster(text: str) -> set[str]:
    """Ports that containers and services open, and to which a policy lets others in."""
    return set(re.findall(r"\b(?:containerPort|port): (\d{2,5})\b", text.partition("\n  egress:")[0]))


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


SUFFIXES = {"Counter": ("_total",), "Histogram": ("_bucket", "_sum", "_count"), "Summary": ("_sum", "_count"), "Gauge": ("",)}
BUILT_IN = {
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
}


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
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    made = [(call.func.id, call.args[0].value) for call in calls if isinstance(call.func, ast.Name) and isinstance(call.args[0], ast.Constant)]
    return {str(name) + suffix for kind, name in made for suffix in SUFFIXES.get(kind, ())}


@functools.cache
def queries(file: str, text: str) -> list[str]:
    """What stands under `expr` in YAML and JSON, and metrics with a label or a window in Python's strings."""
    if file.endswith((".yml", ".yaml", ".json")):
        return list(under("expr", lint.PARSERS[Path(file).suffix](text))) if "expr" in text else []
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

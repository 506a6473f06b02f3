"""Each overlay as `kubectl apply -k` would send it: whole, valid, and its parts find each other."""

import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from agree_traffic import ports_agree
from conftest import OPTIONS, ROOT, Bake
from lint import PROJECT

pytestmark = pytest.mark.skipif("kubernetes" not in OPTIONS["deployment"], reason="deployment has no choice kubernetes here")

Overlay = list[dict[str, Any]]
NEEDED = ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor")
OPERATORS = ("ServiceMonitor", "PrometheusRule")  # kinds of the Prometheus operator, which Kubernetes' own schemas do not know


@pytest.fixture(scope="module")
def manifests(bake: Bake) -> Path:
    return bake(deployment="kubernetes") / "deploy" / "kubernetes"


@pytest.fixture(scope="module", params=["staging", "production"])
def overlay(request: pytest.FixtureRequest, manifests: Path) -> Overlay:
    return build(manifests / "overlays" / request.param)


def build(folder: Path) -> Overlay:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: no overlay was built")
    return list(yaml.safe_load_all(subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True).stdout))


def pods(overlay: Overlay) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of what runs pods, and the template of each."""
    for part in overlay:
        spec = part.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield f"{part['kind']} {part['metadata']['name']}", template


def lost(overlay: Overlay) -> list[str]:
    """What should find pods, services, volumes or images, and does not."""
    labels = [template["metadata"]["labels"] for _, template in pods(overlay)]
    services = [part["metadata"].get("labels", {}) for part in overlay if part["kind"] == "Service"]
    claims = {part["metadata"]["name"] for part in overlay if part["kind"] == "PersistentVolumeClaim"}
    found = []
    for part in overlay:
        spec, kind = part.get("spec", {}), part["kind"]
        selector = spec.get("podSelector") if kind == "NetworkPolicy" else spec.get("selector")
        if not selector:
            continue
        wanted = {"matchLabels": selector} if kind == "Service" else selector
        for names in chosen(wanted):
            if not any(names.items() <= of.items() for of in (services if kind == "ServiceMonitor" else labels)):
                found.append(f"{kind} {part['metadata']['name']} selects {names}, which nothing has")
    for name, template in pods(overlay):
        spec = template["spec"]
        found += [f"{name} runs {c['image']}, which no overlay places" for c in spec["containers"] if "/" not in c["image"]]
        volumes = [v["persistentVolumeClaim"]["claimName"] for v in spec.get("volumes", []) if "persistentVolumeClaim" in v]
        found += [f"{name} mounts {v}, which nothing claims" for v in volumes if v not in claims]
    return found


def chosen(selector: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each set of labels that a selector stands for."""
    same = dict(selector.get("matchLabels", {}))
    several = [(e["key"], value) for e in selector.get("matchExpressions", []) for value in e["values"]]
    yield from ({**same, key: value} for key, value in several) if several else iter([same])


def test_an_overlay_is_valid(overlay: Overlay, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump_all([part for part in overlay if part["kind"] not in OPERATORS]))
    validate = str(Path(sys.executable).with_name("kubernetes-validate"))
    subprocess.run([validate, "--strict", str(path)], check=True, capture_output=True)


def test_everything_in_an_overlay_finds_what_it_names(overlay: Overlay) -> None:
    assert lost(overlay) == []
    assert len({part["metadata"]["namespace"] for part in overlay}) == 1


def test_all_that_a_service_needs_is_there(manifests: Path) -> None:
    """Every pod without root and without a file system to write to, the service's with every probe."""
    base = [part for file in (manifests / "base").glob("*.yaml") for part in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    kinds = {f"{part['kind']} {part['metadata']['name']}" for part in base if part["kind"] != "Kustomization"}
    assert kinds >= {f"{kind} predictions" for kind in NEEDED} | {"CronJob monitor"}
    for name, template in pods(base):
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"], name
            assert container["resources"].keys() == {"requests", "limits"}, name
            assert name != "Deployment predictions" or container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("service.yaml", "app.kubernetes.io/name: predictions\n    spec:", "app.kubernetes.io/name: other\n    spec:", "Service predictions selects"),
        ("monitor.yaml", "claimName: monitor", "claimName: other", "mounts other"),
        ("monitor.yaml", "image: monitor ", "image: other ", "runs other"),
    ],
)
def test_what_is_lost_is_caught(file: str, old: str, new: str, said: str, manifests: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(manifests, tmp_path / "copy"))
    text = (copy / "base" / file).read_text()
    assert old in text
    (copy / "base" / file).write_text(text.replace(old, new))
    assert any(said in line for line in lost(build(copy / "overlays" / "staging")))


@pytest.mark.parametrize(
    ("file", "old"), [("service.yaml", "containerPort: 8080"), ("service.yaml", "port: 8080, t"), ("network.yaml", "port: 8080")]
)
def test_a_port_that_is_not_the_services_is_caught(file: str, old: str, manifests: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(manifests.parents[1], tmp_path / "project"))
    path = project / "deploy" / "kubernetes" / "base" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, old.replace("8080", "9999")))
    assert [c for c in ports_agree(project) if c.startswith(f"deploy/kubernetes/base/{file}: the service is spoken to at 9999")]
    assert ports_agree(manifests.parents[1]) == []


@pytest.mark.parametrize(
    ("per_replica", "now", "required", "most", "expected"),
    [
        (2500, 23, 1000, 10, (2, 4)),
        (100, 23, 1000, 20, (2, 17)),
        (100, 200, 1000, 40, (7, 34)),
        (1000, 2400, 3000, 41, (8, 40)),
        (500, 20, 500, 3, (2, 3)),
    ],
)
def test_the_autoscalers_bounds_follow_from_the_rates(per_replica: float, now: float, required: float, most: int, expected: tuple[int, int]) -> None:
    script = runpy.run_path(str(ROOT / PROJECT / "deploy" / "to" / "kubernetes" / "from_requirements.py"))
    assert script["bounds"](per_replica, now, required, most) == expected
    with pytest.raises(ValueError, match=r"replicas are needed, but deployment\.max_replicas is 1"):
        script["bounds"](per_replica, now, 10 * required, 1)

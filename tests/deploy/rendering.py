"""Manifests as the chart and the overlays give them, parsed."""

from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.programs import DEPLOY, output_of

CHART: Final = DEPLOY / "helm" / "onebasis"
OVERLAYS: Final = DEPLOY / "kustomize" / "overlays"
VALUES: Final = Path(__file__).parent / "values"
Manifest = dict[str, Any]


@cache
def chart(*values: Path, release: str = "onebasis", tests: bool = False) -> tuple[Manifest, ...]:
    """What `helm template` gives for files of values, later ones first in rank."""
    return parsed(chart_text(*values, release=release, tests=tests))


@cache
def chart_text(*values: Path, release: str = "onebasis", tests: bool = False) -> str:
    options = [word for path in values for word in ("--values", str(path))] + ([] if tests else ["--skip-tests"])
    return output_of("helm", "template", release, CHART, "--namespace", "onebasis", *options)


@cache
def overlay(name: str) -> tuple[Manifest, ...]:
    """What `kubectl kustomize` gives."""
    return parsed(output_of("kubectl", "kustomize", OVERLAYS / name))


def parsed(text: str) -> tuple[Manifest, ...]:
    return tuple(document for document in yaml.safe_load_all(text) if document)


def one(manifests: tuple[Manifest, ...], kind: str, name: str | None = None) -> Manifest:
    """The only manifest of a kind."""
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def pod_specs(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    """The pods in Deployments, Jobs, CronJobs and alone."""
    specs = []
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if manifest["kind"] in ("Deployment", "Job", "CronJob"):
            specs.append(spec["template"]["spec"])
        if manifest["kind"] == "Pod":
            specs.append(spec)
    return specs


def containers(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    return [c for spec in pod_specs(manifests) for c in (*spec.get("initContainers", []), *spec["containers"])]

"""The overlays give what the chart gives for the values beside them."""

import pytest

from tests.deploy.programs import DEPLOY
from tests.deploy.rendering import OVERLAYS, chart, chart_text, overlay

BASE = DEPLOY / "kustomize" / "base"


def test_the_base_is_what_the_chart_renders():
    rendered = chart_text(BASE / "values.yaml")
    assert (BASE / "onebasis.yaml").read_text() == rendered, "run 'make deploy-render'"


@pytest.mark.parametrize("name", sorted(path.name for path in OVERLAYS.iterdir()))
def test_an_overlay_is_what_the_chart_renders(name):
    found = by_identity(overlay(name))
    expected = by_identity(chart(BASE / "values.yaml", OVERLAYS / name / "values.yaml"))
    assert found.keys() == expected.keys()
    for identity, manifest in expected.items():
        assert found[identity] == manifest, identity


def test_all_overlays_are_there():
    assert {path.name for path in OVERLAYS.iterdir()} == {"cpu", "gpu", "gateway", "keda"}


def by_identity(manifests):
    return {(m["apiVersion"], m["kind"], m["metadata"]["name"]): without_order(m) for m in manifests}


def without_order(value):
    """Lists whose items have names are sets to Kubernetes: patches put new items first, the chart where they fit."""
    if isinstance(value, dict):
        return {key: without_order(part) for key, part in value.items()}
    if isinstance(value, list):
        parts = [without_order(part) for part in value]
        named = parts and all(isinstance(part, dict) and "name" in part for part in parts)
        mounts = parts and all(isinstance(part, dict) and "mountPath" in part for part in parts)
        key = "mountPath" if mounts else "name"
        return sorted(parts, key=lambda part: part[key]) if named or mounts else parts
    return value

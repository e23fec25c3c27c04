"""How tasks and their versions look in answers."""

from typing import Any

from fastapi.responses import JSONResponse

from onebasis.api.conditions import etag
from onebasis.api.deps import Services
from onebasis.coefficients.catalog import RegisteredTask
from onebasis.coefficients.registry import Registration
from onebasis.coefficients.store import StoredVersion
from onebasis.core.residual import Residuals, size_bytes


def task_card(task: RegisteredTask, services: Services) -> dict[str, Any]:
    """A task at its current version."""
    return {
        "id": task.name,
        "object": "task",
        "digest": task.digest,
        "generation": task.generation,
        "base": services.base_name,
        "basis": services.basis_digest,
        "size_bytes": task.size_bytes,
        "form": task.form,
        "k": task.k,
        "residual": _residual_card(task.residual),
        "created_at": task.created_at,
        "state": task.state,
        "reason": task.reason,
        "provenance": task.provenance,
        "metadata": task.version.metadata,
        "tenant": task.version.owner or None,
    }


def _residual_card(residual: Residuals) -> dict[str, int] | None:
    """What a task costs beside its coefficients; None for most."""
    if not residual:
        return None
    return {
        "rank": max(factors.rank for factors in residual.values()),
        "size_bytes": size_bytes(residual),
        "sites": len(residual),
    }


def version_card(version: StoredVersion) -> dict[str, Any]:
    """One of a task's versions."""
    return {
        "id": f"{version.name}@{version.digest}",
        "object": "task.version",
        "task": version.name,
        "digest": version.digest,
        "generation": version.generation,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "metadata": version.metadata,
    }


def registered(registration: Registration, services: Services) -> JSONResponse:
    """The answer to a write: 201 if a version was stored, 200 if the task stands at it already."""
    task = registration.task
    return JSONResponse(
        task_card(task, services),
        status_code=201 if registration.created else 200,
        headers=etag(task.digest) | {"Location": f"/v1/tasks/{task.name}"},
    )

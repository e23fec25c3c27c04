"""What the chart's `options` may hold: the fields of ServeConfig that the chart does not decide on itself."""

from typing import Any, Final

from onebasis.core.config import ServeConfig

DECIDED_BY_CHART: Final = frozenset(
    {"model", "basis", "store", "host", "port", "device", "api_keys_file", "allow_unauthenticated"}
    | {"shutdown_delay_s", "drain_s"}
)
NOT_OFFERED: Final = frozenset({"require_auth", "lora_root"})  # implied by the keys; there is no folder to name


def options_schema() -> dict[str, Any]:
    """JSON schema of `options`, from ServeConfig: the same names, types, bounds and words."""
    fields = ServeConfig.model_json_schema()["properties"]
    offered = sorted(fields.keys() - DECIDED_BY_CHART - NOT_OFFERED)
    return {"type": "object", "additionalProperties": False, "properties": {n: _property(fields[n]) for n in offered}}


def _property(field: dict[str, Any]) -> dict[str, Any]:
    """A field without its preset; None is said by leaving an option out."""
    (kind,) = [part for part in field.get("anyOf", [field]) if part != {"type": "null"}]
    kept = {key: value for key, value in (field | kind).items() if key not in ("anyOf", "default", "title")}
    return dict(sorted(kept.items()))

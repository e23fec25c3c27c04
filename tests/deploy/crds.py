"""The parts of custom resources that the chart uses, as strict JSON schemas after their definitions:

Gateway API v1.3 of the standard channel (HTTPRoute), Gateway API inference extension v1 (InferencePool), llm-d router
(InferenceObjective, InferenceModelRewrite), KEDA 2.17 (ScaledObject), Prometheus operator 0.80 (ServiceMonitor,
PrometheusRule). A field that is not here is refused: a slip in the chart would be dropped by a cluster without a word.
"""

from typing import Any, Final

Schema = dict[str, Any]


def _object(required: Schema, **optional: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(required),
        "properties": required | optional,
    }


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def _int(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_PORT: Final = _int(1, 65535)
_NAME: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
_LABELS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
_DURATION: Final[Schema] = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_WEIGHT: Final = _int(0, 1000000)

_PATH: Final = _object({"type": {"enum": ["Exact", "PathPrefix"]}, "value": {"type": "string", "pattern": "^/"}})
_BACKEND: Final = {
    "oneOf": [
        _object({"name": _NAME, "port": _PORT}, weight=_WEIGHT),
        _object(
            {"group": {"const": "inference.networking.k8s.io"}, "kind": {"const": "InferencePool"}, "name": _NAME},
            weight=_WEIGHT,
        ),
    ]
}
_ROUTE: Final = _object(
    {
        "parentRefs": _list(_object({"name": _NAME}, namespace=_NAME, sectionName=_NAME), 1, 32),
        "rules": _list(
            _object(
                {"matches": _list(_object({"path": _PATH}, method={"enum": ["GET", "POST", "PUT", "DELETE"]}), 1, 64)},
                timeouts=_object({"request": _DURATION}),
                backendRefs=_list(_BACKEND, 1, 16),
            ),
            1,
            16,
        ),
    },
    hostnames=_list(_TEXT, 0, 16),
)
_POOL: Final = _object(
    {
        "selector": _object({"matchLabels": _LABELS}),
        "targetPorts": _list(_object({"number": _PORT}), 1, 8),
        "endpointPickerRef": _object(
            {"name": _NAME, "port": _object({"number": _PORT})}, failureMode={"enum": ["FailOpen", "FailClose"]}
        ),
    }
)
# Its group would be llm-d.ai by default, where there is no InferencePool.
_POOL_REF: Final = _object(
    {"group": {"const": "inference.networking.k8s.io"}, "kind": {"const": "InferencePool"}, "name": _NAME}
)
_OBJECTIVE: Final = _object({"poolRef": _POOL_REF}, priority=_int(-(2**31), 2**31 - 1))
_REWRITE: Final = _object(
    {
        "poolRef": _POOL_REF,
        "rules": _list(
            _object(
                {"targets": _list(_object({"modelRewrite": _TEXT}, weight=_int(1, 1000000)), 1)},
                matches=_list(_object({"model": _object({"value": _TEXT}, type={"const": "Exact"})})),
            ),
            1,
        ),
    }
)
_SCALED_OBJECT: Final = _object(
    {
        "scaleTargetRef": _object({"name": _NAME}),
        "triggers": _list(
            _object(
                {
                    "type": {"const": "prometheus"},
                    "metadata": _object(
                        {"serverAddress": _TEXT, "query": _TEXT, "threshold": {"pattern": "^[0-9]+$"}},
                        ignoreNullValues={"enum": ["true", "false"]},
                    ),
                },
                metricType={"enum": ["AverageValue", "Value"]},
            ),
            1,
        ),
    },
    pollingInterval=_int(1, 3600),
    minReplicaCount=_int(0, 1000),
    maxReplicaCount=_int(1, 1000),
    fallback=_object(
        {"failureThreshold": _int(1, 100), "replicas": _int(0, 1000)},
        behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]},
    ),
    advanced=_object(
        {},
        horizontalPodAutoscalerConfig=_object(
            {},
            behavior=_object({}, scaleDown=_object({}, stabilizationWindowSeconds=_int(0, 3600))),
        ),
    ),
)
_SERVICE_MONITOR: Final = _object(
    {
        "selector": _object({"matchLabels": _LABELS}),
        "endpoints": _list(
            _object(
                {"port": _TEXT},
                path=_TEXT,
                interval=_DURATION,
                authorization=_object({"credentials": _object({"name": _NAME, "key": _TEXT})}),
            ),
            1,
        ),
    }
)
_RULES: Final = _object(
    {
        "groups": _list(
            _object(
                {
                    "name": _TEXT,
                    "rules": _list(
                        {
                            "oneOf": [
                                _object({"record": _TEXT, "expr": _TEXT}),
                                _object(
                                    {
                                        "alert": _TEXT,
                                        "expr": _TEXT,
                                        "labels": _LABELS,
                                        "annotations": {"type": "object"},
                                    },
                                    **{"for": _DURATION},
                                ),
                            ]
                        },
                        1,
                    ),
                }
            ),
            1,
        )
    }
)


def _resource(spec: Schema) -> Schema:
    metadata = _object({"name": _NAME, "labels": _LABELS})
    return _object({"apiVersion": _TEXT, "kind": _TEXT, "metadata": metadata, "spec": spec})


CUSTOM_RESOURCES: Final[dict[tuple[str, str], Schema]] = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _resource(_ROUTE),
    ("inference.networking.k8s.io/v1", "InferencePool"): _resource(_POOL),
    ("llm-d.ai/v1alpha2", "InferenceObjective"): _resource(_OBJECTIVE),
    ("llm-d.ai/v1alpha2", "InferenceModelRewrite"): _resource(_REWRITE),
    ("keda.sh/v1alpha1", "ScaledObject"): _resource(_SCALED_OBJECT),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _resource(_SERVICE_MONITOR),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _resource(_RULES),
}

"""The Helm chart: what it renders is what Kubernetes, its extensions and our own commands take."""

import json
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from onebasis.api.ops import router
from onebasis.core.config import ServeConfig
from tests.deploy.command_lines import resolve, variables
from tests.deploy.crds import CUSTOM_RESOURCES
from tests.deploy.options import options_schema
from tests.deploy.programs import DEPLOY, output_of, run
from tests.deploy.rendering import CHART, OVERLAYS, VALUES, chart, chart_text, containers, one, pod_specs

VALUE_SETS = {"presets": (), **{path.stem: (path,) for path in sorted(VALUES.glob("*.yaml"))}}
VALUE_SETS |= {f"overlay-{path.name}": (path / "values.yaml",) for path in sorted(OVERLAYS.iterdir())}
OLDEST, NEWEST = "1.30", "1.34"  # Kubernetes: what Chart.yaml asks for, and what helm here is made for
SAMPLES = {"ONEBASIS_STORE": "postgresql://user:password@host/database", "ONEBASIS_THREADS": "2"}  # from elsewhere


@pytest.fixture(params=VALUE_SETS)
def manifests(request):
    """All that one set of values gives, helm's tests included."""
    return chart(*VALUE_SETS[request.param], tests=True)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_lint_finds_nothing(values):
    files = [word for path in values for word in ("--values", str(path))]
    output_of("helm", "lint", "--strict", CHART, *files)


def test_kubernetes_takes_every_manifest(manifests):
    for manifest in manifests:
        if (manifest["apiVersion"], manifest["kind"]) not in CUSTOM_RESOURCES:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(manifest, version, strict=True)


def test_extensions_take_every_custom_resource(manifests):
    for manifest in manifests:
        schema = CUSTOM_RESOURCES.get((manifest["apiVersion"], manifest["kind"]))
        if schema is not None:
            jsonschema.validate(manifest, schema)


def test_every_custom_resource_is_in_some_set():
    rendered = {(m["apiVersion"], m["kind"]) for values in VALUE_SETS.values() for m in chart(*values)}
    assert CUSTOM_RESOURCES.keys() <= rendered


def test_every_command_and_variable_is_one_that_the_program_reads(manifests):
    for container in containers(manifests):
        line = [*container.get("command", ["onebasis"]), *container["args"]] if "args" in container else None
        names = {item["name"] for item in container.get("env", [])}
        if line is None:
            assert container["command"] == ["python", "/test/smoke_test.py"]
            line = ["onebasis-client", "list"]  # the script reads what the client reads
        resolve(line)
        assert names <= variables(line), container["name"]


def test_the_server_takes_its_settings(manifests):
    config = config_of(server(manifests))
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    assert config.threads == (None if config.engine == "vllm" else 2), "vLLM has threads of its own"


def test_vllm_gets_the_gpus_that_it_cuts_the_model_over():
    pod = one(chart(VALUES / "multi-gpu.yaml"), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = config_of(container)
    assert (config.engine, config.tensor_parallel_size, config.pipeline_parallel_size) == ("vllm", 4, 2)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["image"].endswith("-cuda-vllm")
    assert {"name": "shared", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {"name": "shared", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_options_arrive_as_they_were_given():
    config = config_of(server(chart(VALUES / "everything.yaml")))
    given = yaml.safe_load((VALUES / "everything.yaml").read_text())["options"]
    assert {name: getattr(config, name) for name in given} == given
    assert config.basis is not None and str(config.basis) == "/models/bases/k16.basis.safetensors"
    assert str(config.model) == "/models/llama/8b"


def test_the_schema_offers_the_options_that_the_server_has():
    schema = json.loads((CHART / "values.schema.json").read_text())
    expected = options_schema()
    assert schema["properties"]["options"] == expected, f"put this into values.schema.json: {json.dumps(expected)}"


def test_a_pod_may_take_as_long_to_end_as_the_server_does(manifests):
    (spec,) = pod_specs(tuple(m for m in manifests if m["kind"] == "Deployment"))
    container = server(manifests)
    pre_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    config = config_of(container)
    assert spec["terminationGracePeriodSeconds"] == pre_stop_s + config.shutdown_delay_s + config.drain_s + 30


def test_probes_ask_what_the_server_answers(manifests):
    container = server(manifests)
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
    assert set(paths.values()) <= {route.path for route in router.routes}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in paths} <= ports.keys()


def test_a_large_model_has_time_to_load():
    probe = server(chart(VALUES / "everything.yaml"))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


def test_no_pod_may_do_more_than_it_needs(manifests):
    for spec in pod_specs(manifests):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifests):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"], container["name"]
        assert not container["image"].endswith(":latest") and re.search(r"[:@]", container["image"])


def test_writable_folders_are_scratch_or_the_store(manifests):
    for spec in pod_specs(manifests):
        sources = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if not mount.get("readOnly"):
                    assert mount["mountPath"] in ("/tmp", "/cache", "/data", "/dev/shm")
                    scratch = ({}, {"medium": "Memory"})
                    assert mount["name"] in ("store", "cache") or sources[mount["name"]]["emptyDir"] in scratch


def test_variables_of_services_do_not_reach_the_server(manifests):
    """A Service named onebasis would set ONEBASIS_PORT=tcp://..., which is an option of ours."""
    assert [spec["enableServiceLinks"] for spec in pod_specs(manifests)] == [False] * len(pod_specs(manifests))


def test_selectors_find_the_server_and_no_other_pod(manifests):
    deployment = one(manifests, "Deployment")
    found = [("Deployment", deployment["spec"]["selector"]["matchLabels"])]
    found += [(m["kind"], m["spec"]["selector"]) for m in manifests if m["kind"] == "Service"]
    chosen = ("PodDisruptionBudget", "InferencePool")
    found += [(m["kind"], m["spec"]["selector"]["matchLabels"]) for m in manifests if m["kind"] in chosen]
    found += [(m["kind"], m["spec"]["podSelector"]["matchLabels"]) for m in manifests if m["kind"] == "NetworkPolicy"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    others = [m["metadata"]["labels"] for m in manifests if m["kind"] == "Pod"]
    others += [m["spec"]["template"]["metadata"]["labels"] for m in manifests if m["kind"] == "Job"]
    for kind, selector in found:
        assert selector.items() <= labels.items(), kind
        assert not [other for other in others if selector.items() <= other.items()], kind


def test_what_is_named_is_there(manifests):
    """Services, the Deployment, accounts and claims of this release; Secrets and volumes may be the operator's."""
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    name = one(manifests, "Deployment")["metadata"]["name"]
    for m in manifests:
        if m["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert m["spec"]["scaleTargetRef"]["name"] == name
        if m["kind"] == "HTTPRoute":
            own = [rule["backendRefs"][0] for rule in m["spec"]["rules"]]
            assert {(backend.get("kind", "Service"), backend["name"]) for backend in own} <= names
        if m["kind"] in ("InferenceObjective", "InferenceModelRewrite"):
            assert ("InferencePool", m["spec"]["poolRef"]["name"]) in names
    for spec in pod_specs(manifests):
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
    for container in containers(manifests):
        url = [item["value"] for item in container.get("env", []) if item["name"] == "ONEBASIS_URL"]
        assert url in ([], [f"http://{name}:8000"])


def test_streams_are_not_cut_by_the_route():
    for values in (VALUES / "everything.yaml", VALUES / "inside.yaml"):
        rules = one(chart(values), "HTTPRoute")["spec"]["rules"]
        assert [rule["timeouts"]["request"] for rule in rules] == ["0s"] * len(rules)


def test_only_generation_goes_through_the_endpoint_picker():
    """It reads bodies as JSON; uploads are bytes."""
    generate, api = one(chart(VALUES / "everything.yaml"), "HTTPRoute")["spec"]["rules"]
    assert {match["path"]["value"] for match in generate["matches"]} == {"/v1/completions", "/v1/chat/completions"}
    assert generate["backendRefs"][0]["kind"] == "InferencePool"
    assert {backend.get("kind") for backend in api["backendRefs"]} == {None}


def test_metrics_and_health_stay_inside():
    rules = one(chart(VALUES / "inside.yaml"), "HTTPRoute")["spec"]["rules"]
    paths = [match["path"]["value"] for rule in rules for match in rule["matches"]]
    assert paths == ["/v1", "/tokenize", "/detokenize", "/tokenizer_info"]


def test_two_releases_share_nothing():
    """Two bases side by side are two releases in one namespace."""
    first, second = chart(VALUES / "everything.yaml"), chart(VALUES / "everything.yaml", release="onebasis-next")
    own = {"InferenceObjective"}  # named by the operator
    identities = [
        {(m["kind"], m["metadata"]["name"]) for m in each if m["kind"] not in own} for each in (first, second)
    ]
    assert not identities[0] & identities[1]
    labels = one(second, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not one(first, "Service")["spec"]["selector"].items() <= labels.items()


def test_another_specification_is_another_job():
    """A Job can't be changed, so an upgrade that changes it has to make a new one."""
    names = {one(chart(VALUES / name), "Job")["metadata"]["name"] for name in ("everything.yaml", "inside.yaml")}
    assert len(names) == 2
    assert one(chart(VALUES / "trial.yaml"), "CronJob")["spec"]["concurrencyPolicy"] == "Forbid"


def test_keys_of_a_trial_are_in_the_form_that_the_server_reads(tmp_path):
    from onebasis.identity.key_file import parse_key_file

    secret = one(chart(VALUES / "trial.yaml"), "Secret")
    path = tmp_path / "api-keys"
    path.write_text(secret["stringData"]["api-keys"])
    keys = parse_key_file(path).values()
    assert sorted((",".join(sorted(key.scopes)), key.tenant) for key in keys) == [
        ("generate", "acme"),
        ("generate,register", None),
    ]
    assert secret["stringData"]["client-key"] in path.read_text()


@pytest.mark.parametrize("key", ["*" + "a" * 31, "'" + "a" * 31, "1" * 32, "a" * 31 + ":", 'a"\\' + "a" * 29])
def test_a_key_of_any_visible_characters_arrives_as_it_was_given(key, tmp_path):
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"auth": {"keys": [{"scopes": ["generate", "register"], "key": key}]}}))
    secret = one(chart(path), "Secret")["stringData"]
    assert secret == {"api-keys": f"generate,register {key}\n", "client-key": key}


def test_a_packaged_chart_renders_the_same(tmp_path):
    """Rules and dashboards are links to another folder here; the package has to carry them."""
    output_of("helm", "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("onebasis-*.tgz")
    options = ("--namespace", "onebasis", "--skip-tests", "--values", VALUES / "everything.yaml")
    assert output_of("helm", "template", "onebasis", package, *options) == chart_text(VALUES / "everything.yaml")


def test_a_pod_with_sqlite_ends_before_the_next_one_begins():
    deployment = one(chart(VALUES / "trial.yaml"), "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_pods_are_recreated_where_that_is_asked_for(tmp_path):
    """Kubernetes refuses a Recreate that has rollingUpdate beside it, which the chart's own values would bring."""
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"strategy": {"type": "Recreate"}}))
    assert one(chart(path), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_prometheus_that_lost_the_pods_does_not_scale_them_down():
    scaled = one(chart(VALUES / "everything.yaml"), "ScaledObject")["spec"]
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert scaled["triggers"][0]["metadata"]["ignoreNullValues"] == "false", "an empty answer is no error: no fallback"


def test_notes_say_what_is_needed_and_what_to_do_next():
    done = run("helm", "install", "onebasis", CHART, "--dry-run=client", "--namespace", "serving")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    for said in ("onebasis-postgresql", "onebasis-keys", "helm -n serving test onebasis", "2 replicas on cpu"):
        assert said in notes


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"store": {"kind": "sqlite"}}, "store.kind sqlite is for one replica"),
        ({"replicas": 1, "store": {"kind": "sqlite"}, "autoscaling": {"kind": "keda"}}, "sqlite is for one replica"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 9}}, "minReplicas is more than autoscaling.maxReplicas"),
        ({"register": {"enabled": True}}, "register.enabled needs register.volume"),
        (
            {"register": {"enabled": True, "volume": {"configMap": {"name": "a"}}}, "model": {"basis": ""}},
            "register.enabled needs model.basis",
        ),
        ({"device": "cuda", "resources": {"limits": {"nvidia.com/gpu": 2}}}, "the chart counts nvidia.com/gpu itself"),
        ({"strategy": {"rollingUpdate": {"maxSurge": 0}}}, "no pod could be replaced"),
        ({"strategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "0%"}}}, "no pod could be replaced"),
        ({"options": {"max_running": 512, "max_step_tokens": 256}}, "max_step_tokens must be at least"),
        ({"device": "cuda", "options": {"tensor_parallel_size": 2}}, "is for options.engine vllm"),
        ({"device": "cuda", "options": {"pipeline_parallel_size": 2}}, "is for options.engine vllm"),
        ({"options": {"engine": "vllm", "distributed_executor_backend": "ray"}}, "see deploy/MULTI-NODE.md"),
        ({"options": {"max_runing": 1}}, "additional properties 'max_runing' not allowed"),
        ({"options": {"host": "::"}}, "additional properties 'host' not allowed"),
        ({"options": {"dtype": "int4"}}, "value must be one of 'bfloat16', 'float16', 'float32'"),
        ({"options": {"kv_cache_mib": 0}}, "minimum: got 0, want 1"),
        ({"gateway": {"objectives": [{"name": "a", "priority": 1}]}}, "set gateway.inferencePool.enabled"),
        ({"options": {"protect_metrics": True}, "gateway": {"inferencePool": {"enabled": True}}}, "shuts out"),
        (
            {
                "options": {"protect_metrics": True},
                "auth": {"allowUnauthenticated": True},
                "monitoring": {"serviceMonitor": {"enabled": True}},
            },
            "monitoring.serviceMonitor has no key",
        ),
        ({"auth": {"allowUnauthenticated": True, "keys": [{"scopes": ["admin"], "key": "a" * 32}]}}, "drop one"),
        ({"auth": {"keys": [{"scopes": ["generate"], "key": "a" * 32}]}}, "the first key serves the register Job"),
        ({"auth": {"keys": [{"scopes": ["generate"], "key": "short"}]}}, "does not match pattern"),
        ({"image": {"tag": "latest"}}, "'/image/tag'"),
        ({"image": {"digest": "sha256:12"}}, "'/image/digest'"),
        ({"model": {"path": "../etc"}}, "'/model/path'"),
        ({"model": {"volume": {"emptyDir": {}, "persistentVolumeClaim": {"claimName": "a"}}}}, "'/model/volume'"),
        ({"replicas": 0}, "'/replicas'"),
        ({"device": "tpu"}, "'/device'"),
        ({"lifecycle": {"preStopSeconds": 0}}, "'/lifecycle/preStopSeconds'"),
        ({"register": {"schedule": "often"}}, "'/register/schedule'"),
        ({"monitoring": {"rules": {"runbook": "https://wiki.example/a: b"}}}, "'/monitoring/rules/runbook'"),
        ({"resources": {"limits": {"memory": None}}}, "missing property 'memory'"),
        ({"unknown": 1}, "additional properties 'unknown' not allowed"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_when_they_are_rendered(values, complaint, tmp_path):
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = run("helm", "template", "onebasis", CHART, "--values", path)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_every_value_is_in_the_schema_and_every_schema_has_a_value():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert values.keys() | {"global"} == schema["properties"].keys()


def test_yaml_is_tidy():
    rules = (
        "{extends: default, rules: {line-length: {max: 150}, document-start: disable, braces: {max-spaces-inside: 1}, "
    )
    rules += "comments: {min-spaces-from-content: 1}, truthy: {check-keys: false}}}"
    files = [path for path in sorted(DEPLOY.rglob("*.yaml")) if not path.is_relative_to(CHART / "templates")]
    files = [path for path in files if "gateway/envoy" not in str(path) and path.name != "onebasis.yaml"]
    output_of("yamllint", "--strict", "--config-data", rules, *files)


def test_the_chart_carries_the_programs_version():
    from onebasis import __version__

    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == __version__
    assert f"onebasis:{__version__}" in chart_text()


def server(manifests):
    (found,) = [c for c in containers(manifests) if c["name"] == "server"]
    return found


def config_of(container):
    """Settings as the process gets them: text, lists with spaces in between."""
    given = {item["name"]: item.get("value", SAMPLES.get(item["name"])) for item in container["env"]}
    settings = {name.removeprefix("ONEBASIS_").lower(): value for name, value in given.items()}
    if "cors_origin" in settings:
        settings["cors_origin"] = settings["cors_origin"].split()
    return ServeConfig.model_validate(settings)

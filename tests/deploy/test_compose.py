"""compose.yaml and what it mounts, as far as they can be checked without a container engine."""

import re

import pytest
import yaml

from onebasis import __version__
from onebasis.core.config import ServeConfig
from tests.deploy.command_lines import resolve, variables
from tests.deploy.programs import DEPLOY, output_of

FOLDER = DEPLOY / "compose"
FILE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = FILE["services"]
OURS = ("unpack", "onebasis", "register", "picker")


def test_there_is_everything_that_a_trial_of_the_whole_needs():
    expected = {*OURS, "gateway", "postgres", "prometheus", "grafana"}
    assert SERVICES.keys() == expected
    assert SERVICES["onebasis"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_versions(name):
    _, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.match(r"v?\d+\.\d+", tag)
    if name in OURS:
        assert tag == __version__


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_no_more_than_they_need(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_new_volumes_belong_to_those_who_write_there():
    """A new volume takes the owner of the folder that the image has in its place; root without capabilities may
    not write into another's."""
    (made,) = re.findall(r"install -d -o 10001 -g 10001 (.+)", (DEPLOY / "image" / "Dockerfile").read_text())
    mounted = [mount.split(":") for name in OURS for mount in SERVICES[name].get("volumes", [])]
    assert {place for source, place, *_ in mounted if source in FILE["volumes"]} <= set(made.split())
    assert [name for name in OURS if "user" in SERVICES[name]] == []


def test_nothing_listens_beyond_this_machine():
    """Nobody is asked for a key here."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_server_takes_its_settings():
    given = SERVICES["onebasis"]["environment"]
    assert given.keys() <= variables(["onebasis", "serve"])
    config = ServeConfig.model_validate(
        {name.removeprefix("ONEBASIS_").lower(): value for name, value in given.items()} | {"host": "0.0.0.0"}
    )
    grace_s = int(SERVICES["onebasis"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= config.shutdown_delay_s + config.drain_s + 10


def test_commands_exist():
    resolve(["onebasis", *SERVICES["unpack"]["command"]])
    resolve([*SERVICES["register"]["entrypoint"], *SERVICES["register"]["command"]])


def test_what_is_waited_for_can_come():
    for service in SERVICES.values():
        for name, wish in service.get("depends_on", {}).items():
            if wish["condition"] == "service_healthy":
                is_own_image = name in OURS  # with a HEALTHCHECK in the Dockerfile
                assert is_own_image or "healthcheck" in SERVICES[name]
                assert SERVICES[name].get("healthcheck") != {"disable": True}
            else:
                assert wish["condition"] == "service_completed_successfully"


def test_volumes_and_mounted_files_exist():
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in FILE["volumes"] or (FOLDER / source).exists(), source


def test_prometheus_takes_its_configuration(tmp_path):
    for source in (FOLDER / "prometheus.yaml", DEPLOY / "monitoring" / "alerts.yaml"):
        (tmp_path / source.name).write_text(source.read_text())
    output_of("promtool", "check", "config", tmp_path / "prometheus.yaml")


def test_prometheus_scrapes_each_replica_as_the_alerts_expect():
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["onebasis"], 8000)
    assert "onebasis" in job["job_name"]


def test_grafana_finds_the_dashboards_where_they_are_mounted():
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["../monitoring/dashboards"] == provider["options"]["path"]


def test_the_gateway_finds_replicas_and_picker_by_their_names():
    envoy = yaml.safe_load((DEPLOY / "gateway" / "envoy.yaml").read_text())
    addresses = set(sockets(envoy["static_resources"]["clusters"]))
    assert addresses == {("onebasis", 8000), ("picker", 9002)}
    assert {name for name, _ in addresses} <= SERVICES.keys()
    ((_, port),) = set(sockets(envoy["static_resources"]["listeners"]))
    assert SERVICES["gateway"]["ports"] == [f"127.0.0.1:8080:{port}"]
    assert SERVICES["picker"]["command"] == ["--replicas", "onebasis:8000"]


def sockets(part):
    if isinstance(part, dict):
        if "socket_address" in part:
            yield part["socket_address"]["address"], part["socket_address"]["port_value"]
        for value in part.values():
            yield from sockets(value)
    elif isinstance(part, list):
        for value in part:
            yield from sockets(value)

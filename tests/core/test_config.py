"""What an operator may decide, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from onebasis.core.config import ServeConfig


def config(**settings: Any) -> ServeConfig:
    return ServeConfig(**({"model": Path("model")} | settings))


def complaint(**settings: Any) -> str:
    with pytest.raises(ValidationError) as refusal:
        config(**settings)
    return str(refusal.value)


def test_a_model_is_all_that_is_needed() -> None:
    assert config().host == "127.0.0.1"
    with pytest.raises(ValidationError, match="model"):
        ServeConfig()


def test_settings_do_not_change_once_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().port = 1


def test_a_setting_that_does_not_exist_is_refused() -> None:
    assert "n_gpus" in complaint(n_gpus=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("dtype", "float64"),
        ("threads", 0),
        ("max_model_len", 1),
        ("kv_cache_mib", 0),
        ("block_size", 0),
        ("block_size", 257),
        ("max_running", 0),
        ("max_step_tokens", 0),
        ("max_waiting", -1),
        ("max_waiting_per_tenant", -1),
        ("default_timeout_s", 0),
        ("max_timeout_s", 0),
        ("stall_s", 0.5),
        ("arena_mib", 0),
        ("max_residual_rank", -1),
        ("residual_mib", 0),
        ("max_body_bytes", 0),
        ("max_json_bytes", 0),
        ("max_header_bytes", 1023),
        ("tenant_tasks", -1),
        ("tenant_bytes", -1),
        ("tenant_requests_per_minute", -1),
        ("tenant_tokens_per_minute", -1),
        ("tenant_concurrent_requests", -1),
        ("drain_s", -1),
        ("log_level", "verbose"),
        ("otlp_endpoint", "collector:4318"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    assert f"\n{name}\n" in complaint(**{name: value})


@pytest.mark.parametrize(("max_running", "max_step_tokens"), [(1, 1), (64, 64), (8, 512)])
def test_a_step_holds_every_running_sequence(max_running: int, max_step_tokens: int) -> None:
    assert config(max_running=max_running, max_step_tokens=max_step_tokens).max_running == max_running
    assert "max_step_tokens must be at least max_running" in complaint(
        max_running=max_step_tokens + 1, max_step_tokens=max_step_tokens
    )


def test_the_default_time_is_one_that_a_request_may_have() -> None:
    assert config(default_timeout_s=9, max_timeout_s=9).default_timeout_s == 9
    assert "default_timeout_s must be at most max_timeout_s" in complaint(default_timeout_s=10, max_timeout_s=9)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_is_open_to_this_machine_alone(host: str) -> None:
    assert config(host=host).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.5", "8.8.8.8", "example.org", "localhost.example.org", "2130706433"],
)
def test_another_host_needs_the_operators_word(host: str) -> None:
    refusal = complaint(host=host)
    assert "pass --allow-unauthenticated" in refusal
    assert "pass --require-auth and make keys with 'onebasis keys create'" in refusal
    assert config(host=host, allow_unauthenticated=True).host == host
    assert config(host=host, require_auth=True).host == host
    assert config(host=host, api_keys_file=Path("keys")).host == host


@pytest.mark.parametrize("closed", [{"require_auth": True}, {"api_keys_file": Path("keys")}])
def test_a_server_is_not_open_and_closed_at_once(closed: dict[str, Any]) -> None:
    assert "allow_unauthenticated contradicts" in complaint(allow_unauthenticated=True, **closed)

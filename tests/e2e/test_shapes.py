"""Tools and shapes with the embedded model, whose chat template knows no tools."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.run import pack_options
from onebasis.demo.server_process import ServerProcess

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(
    model_folder: Path, pack: DemoPack, tmp_path_factory: pytest.TempPathFactory, free_port_of_module: int
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("shapes")
    options = pack_options(model_folder, pack, folder / "tasks.db")
    with (
        ServerProcess(options, port=free_port_of_module, log=folder / "server.log") as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as found,
    ):
        yield found


def chat(client: httpx.Client, **body: object) -> dict[str, object]:
    model = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/chat/completions", json={"model": model, "temperature": 0, "max_tokens": 80} | body)
    answer.raise_for_status()
    choice: dict[str, object] = answer.json()["choices"][0]
    return choice


def test_a_forced_call_takes_its_arguments_from_the_question(client: httpx.Client) -> None:
    choice = chat(client, messages=ASKED, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert "Paris" in json.loads(call["function"]["arguments"])["city"]


def test_a_schema_is_filled_from_the_question(client: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    asked = [{"role": "user", "content": "Write as JSON with name and age: Anna is 31 years old."}]
    found = json.loads(chat(client, messages=asked, response_format=shape)["message"]["content"])
    assert (found["name"], found["age"]) == ("Anna", 31)

"""Names to send in `model`: of tasks and of the bare model."""

from pathlib import Path
from typing import Any

import httpx

from loadtests.common.errors import LoadTestError

PAGE_SIZE = 100


async def task_names(tasks: str, client: httpx.AsyncClient) -> list[str]:
    """Names that `--tasks` stands for, each once: none for "base", the server's for "all".

    Raises:
        LoadTestError: a name twice, none at all, or the server cannot list its tasks.
    """
    if tasks == "base":
        return []
    names = await _listed(client) if tasks == "all" else _written(tasks)
    if not names:
        raise LoadTestError(f"--tasks {tasks}: found no task; store some or use --tasks base")
    if len(set(names)) < len(names):
        raise LoadTestError(f"--tasks {tasks}: {len(names) - len(set(names))} names come twice; name each once")
    return names


async def base_model_name(client: httpx.AsyncClient) -> str:
    """First of GET /v1/models that has no parent, as the cards of vLLM's adapters have.

    Raises:
        LoadTestError: no answer, or no such model.
    """
    payload = await _get(client, "/v1/models", {}, "give --base-model NAME")
    for card in payload["data"]:
        if not card.get("parent"):
            return str(card["id"])
    raise LoadTestError(f"{client.base_url}v1/models lists no base model; give --base-model NAME")


def _written(tasks: str) -> list[str]:
    """Names in the text itself if it has a comma or is no file; otherwise a name a line."""
    is_file = "," not in tasks and Path(tasks).is_file()
    parts = Path(tasks).read_text(encoding="utf-8").splitlines() if is_file else tasks.split(",")
    return [name for part in parts if (name := part.strip())]


async def _listed(client: httpx.AsyncClient) -> list[str]:
    names: list[str] = []
    parameters: dict[str, str | int] = {"limit": PAGE_SIZE}
    has_more = True
    while has_more:
        payload = await _get(client, "/v1/tasks", parameters, "name the tasks, --tasks a,b,c")
        names += [str(card["id"]) for card in payload["data"]]
        has_more = bool(payload.get("has_more"))
        after = payload.get("last_id")
        if has_more and (after is None or after == parameters.get("after")):
            raise LoadTestError(f"{client.base_url}v1/tasks: has_more, but last_id {after!r} leads no further")
        parameters["after"] = str(after)
    return names


async def _get(client: httpx.AsyncClient, path: str, parameters: dict[str, str | int], remedy: str) -> dict[str, Any]:
    """The JSON object at path, known to have a list of objects with an id under `data`."""
    place = f"{str(client.base_url).rstrip('/')}{path}"
    try:
        response = await client.get(path, params=parameters, timeout=30)
        response.raise_for_status()
        payload = response.json()
        cards = payload["data"]
        well_formed = all("id" in card for card in cards)
    except httpx.HTTPStatusError as error:
        raise LoadTestError(f"{place}: HTTP {error.response.status_code}; {remedy}") from None
    except httpx.HTTPError as error:
        raise LoadTestError(f"{place}: {type(error).__name__} {error}; is the server running?") from None
    except (ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise LoadTestError(f"{place}: no list of objects with an id; {remedy}")
    return dict(payload)

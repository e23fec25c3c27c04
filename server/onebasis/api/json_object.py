"""What every part of a generation body is: a JSON object of known fields."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class JsonObject(BaseModel):
    """Part of a body: no conversions, no unknown fields, null means that the field is absent.

    Text is checked to be Unicode: JSON can spell half of a surrogate pair, and no tokenizer or answer takes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_min_length=0)  # any bound makes it check

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: Any) -> Any:
        """Clients send null for "default". Of the unknown fields, the first is left to be refused."""
        if not isinstance(body, Mapping):
            return body
        names = {field.alias or name for name, field in cls.model_fields.items()}
        given = {name: value for name, value in body.items() if value is not None}
        known = {name: value for name, value in given.items() if name in names}
        unknown = next((name for name in given if name not in known), None)
        return known if unknown is None else known | {unknown: given[unknown]}

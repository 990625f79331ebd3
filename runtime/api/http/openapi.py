"""Bodies of requests in the OpenAPI document; routes read them themselves, under limits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def body_of(record: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is `record`, with every definition written out in its place."""
    schema = record.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _written_out(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


def _written_out(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_written_out(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _written_out(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _written_out(item, definitions) for name, item in value.items()}

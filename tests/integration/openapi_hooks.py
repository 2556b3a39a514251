"""What Schemathesis must know to write bodies of our media types; it loads this module itself."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A line for each member of an array, or one line."""
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    """Nobody waits a minute for the answer to a command, of devices that are not there."""
    if isinstance(body, dict) and isinstance(body.get("wait_s"), int | float) and 1 < body["wait_s"] <= 60:
        return {**body, "wait_s": 1}
    return body

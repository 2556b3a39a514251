"""Whether a JSON value contains another, as in the database. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec


def contains(whole: Any, part: Any) -> bool:
    """PostgreSQL's jsonb containment: objects by key, arrays as sets, the rest by equality."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, (list, tuple)):
        return isinstance(whole, (list, tuple)) and all(any(contains(w, p) for w in whole) for p in part)
    return bool(msgspec.json.encode(whole) == msgspec.json.encode(part) or _same_number(whole, part))


def _same_number(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return numbers and not isinstance(a, bool) and not isinstance(b, bool) and a == b

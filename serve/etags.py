"""Conditional requests (RFC 9110, section 13): entity tags out, `If-Match` and `If-None-Match` in."""

import re
from typing import Final

from fastapi import Request

from sensorium.serve.problems import Problem

_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*')
MAX_TAGS: Final = 20


def etag(tag: str) -> dict[str, str]:
    """The `ETag` header of a strong tag."""
    return {"ETag": f'"{tag}"'}


def if_match(request: Request) -> list[str] | None:
    """The strong tags of which one must be the resource's; None: no condition, or any will do.

    A weak tag never matches. Raises a `Problem` where it is none.
    """
    return _tags(request, "if-match", weak=False)


def unchanged(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` says that the caller has this one already."""
    tags = _tags(request, "if-none-match", weak=True)
    return request.headers.get("if-none-match", "").strip() == "*" or (tags is not None and tag in tags)


def _tags(request: Request, header: str, *, weak: bool) -> list[str] | None:
    said = request.headers.get(header)
    if said is None or said.strip() == "*":
        return None
    matches = [_TAG.fullmatch(part) for part in said.split(",")]
    if len(matches) > MAX_TAGS or not all(matches):
        name = header.title()
        raise Problem(422, "invalid", f'{name}: up to {MAX_TAGS} entity tags such as "3.7", or *')
    return [match[2] for match in matches if match is not None and (weak or not match[1])]

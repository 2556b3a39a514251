"""The documents of a twin: how a patch changes one, how that is undone, and what is left to do. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.merge_patch import difference, merge_patch, same

MAX_DOCUMENT_BYTES: Final = 32_768
"""Of one document as JSON."""
MAX_DEPTH: Final = 16
"""Objects and arrays within each other, the document itself counted."""
MAX_FIELDS: Final = 1_000
"""Of one document: each has a time of its own."""

WHOLE_EVERY: Final = 64
"""Every so many versions a change keeps the whole document besides, so that few are undone for a past one."""


MAX_REMOVED: Final = 100
"""Fields that are desired no longer and still remembered; the oldest are forgotten first."""


class FieldWritten(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a field was written last, and by whom; `removed`: it was taken away then."""

    time_ms: int
    by: str
    removed: bool = False


class Document(msgspec.Struct, frozen=True):
    """One document of a twin.

    Attributes:
        version: how often it has changed.
        values: the document; no member of it is null.
        fields: by the JSON pointer (RFC 6901) of each value that is no object, or an empty one; of what is
            desired also those that were removed last.
        changed_ms: when this version came about; None before the first.
    """

    version: int = 0
    values: dict[str, Any] = {}
    fields: dict[str, FieldWritten] = {}
    changed_ms: int | None = None


class Undo(msgspec.Struct, frozen=True):
    """What makes the document of one version that of the version before; `values` is a patch."""

    values: dict[str, Any]
    fields: dict[str, FieldWritten | None]
    changed_ms: int | None


class DocumentChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A change as it stands in the log: what became of which version, by whom, and the way back.

    `whole` is the document after the change, in every `WHOLE_EVERY`th version.
    """

    version: int
    by: str
    patch: dict[str, Any]
    undo: Undo
    whole: Document | None = None


class DocumentRefused(Exception):
    """The document would break a bound; the text says which."""


NOTHING: Final = Document()


def patched(
    document: Document,
    patch: dict[str, Any],
    now_ms: int,
    by: str,
    *,
    replace: bool = False,
    remember_removed: bool = False,
) -> tuple[Document, DocumentChange] | None:
    """The document after a merge patch, or with `replace` as the patch says alone; None: it stays as it is.

    Every field that the patch names counts as written, provided that it changes anything at all.

    Raises:
        DocumentRefused: a bound is broken.
    """
    if _deeper_than(patch, MAX_DEPTH):
        raise DocumentRefused(f"a document has at most {MAX_DEPTH} levels")
    values = merge_patch({} if replace else document.values, patch)
    change = difference(document.values, values)
    if not change:
        return None
    if _deeper_than(values, MAX_DEPTH):
        raise DocumentRefused(f"a document has at most {MAX_DEPTH} levels")
    size_bytes = len(msgspec.json.encode(values))
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise DocumentRefused(f"{size_bytes} bytes as JSON; a document takes at most {MAX_DOCUMENT_BYTES}")
    written = FieldWritten(now_ms, by)
    named = set(pointers(patch))
    fields = {
        pointer: written if pointer in named else document.fields.get(pointer, written)
        for pointer in pointers(values)
    }
    if len(fields) > MAX_FIELDS:
        raise DocumentRefused(f"{len(fields)} fields; a document has at most {MAX_FIELDS}")
    if remember_removed:
        fields |= _removed(document, values, msgspec.structs.replace(written, removed=True))
    after = Document(document.version + 1, values, fields, now_ms)
    back: dict[str, FieldWritten | None] = {
        pointer: document.fields.get(pointer)
        for pointer in (*fields, *(p for p in document.fields if p not in fields))
        if fields.get(pointer) != document.fields.get(pointer)
    }
    undo = Undo(difference(values, document.values), back, document.changed_ms)
    whole = after if after.version % WHOLE_EVERY == 0 else None
    return after, DocumentChange(after.version, by, change, undo, whole)


def undone(document: Document, change: DocumentChange) -> Document:
    """The document before the change that led to it."""
    if document.version != change.version:
        raise ValueError(f"version {document.version} did not come from the change to {change.version}")
    undo = change.undo
    fields = {p: f for p, f in (document.fields | undo.fields).items() if f is not None}
    return Document(change.version - 1, merge_patch(document.values, undo.values), fields, undo.changed_ms)


def before(changes: Sequence[DocumentChange], present: Document) -> Document:
    """The document before the first of the changes.

    Args:
        changes: in the order of their versions, without a gap, up to one with the whole document or up to
            the present version.
    """
    for n, change in enumerate(changes):
        if change.whole is not None:
            changes, present = changes[: n + 1], change.whole
            break
    for change in reversed(changes):
        present = undone(present, change)
    return present


def remaining(desired: Mapping[str, Any], reported: Mapping[str, Any]) -> dict[str, Any]:
    """What is desired and not reported so: the part of `desired` that a device has yet to take."""
    left: dict[str, Any] = {}
    for name, value in desired.items():
        there = reported.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            if inner := remaining(value, there):
                left[name] = inner
        elif name not in reported or not same(value, there):
            left[name] = value
    return left


def delta(desired: Document, reported: Document) -> dict[str, Any]:
    """What a device has yet to do: `remaining`, and null for what it reports and was desired until lately."""
    left = remaining(desired.values, reported.values)
    for pointer, field in desired.fields.items():
        path = _path(pointer)
        if field.removed and _has(reported.values, path) and not _has(desired.values, path):
            inner, wanted = left, desired.values
            for name in path[:-1]:
                wanted = wanted.get(name, {})
                if not isinstance(wanted, dict):
                    break  # something else is desired in the place of its object
                inner = inner.setdefault(name, {})
                if not isinstance(inner, dict):
                    break  # all of the object is to go, or was replaced
            else:
                inner[path[-1]] = None
    return left


def _removed(document: Document, values: Mapping[str, Any], now: FieldWritten) -> dict[str, FieldWritten]:
    """The fields that were there before and are not any more, or were removed lately."""
    gone = {
        pointer: field if field.removed else now
        for pointer, field in document.fields.items()
        if not _has(values, _path(pointer))
    }
    newest = sorted(gone.items(), key=lambda item: -item[1].time_ms)[:MAX_REMOVED]
    return dict(sorted(newest))


def _path(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _has(values: Mapping[str, Any], path: Sequence[str]) -> bool:
    there: Any = values
    for name in path:
        if not isinstance(there, Mapping) or name not in there:
            return False
        there = there[name]
    return True


def pointers(values: Mapping[str, Any], below: str = "") -> Iterator[str]:
    """The JSON pointers of everything in it that is no object, or an empty one."""
    for name, value in values.items():
        place = f"{below}/{name.replace('~', '~0').replace('/', '~1')}"
        if isinstance(value, dict) and value:
            yield from pointers(value, place)
        else:
            yield place


def _deeper_than(value: Any, levels: int) -> bool:
    """Without recursion: what comes from outside may be nested as deep as it likes."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True

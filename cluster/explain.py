"""What is wrong with a YAML file, in one line that names key and FILE:LINE. The rules stand in the models."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sensorium.cluster.errors import ConfigError
from sensorium.cluster.tracked_yaml import Path, dotted

Model = TypeVar("Model", bound=BaseModel)

_WANTED = {
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}


def validated(
    model: type[Model], tree: Any, places: Mapping[Path, str], context: dict[str, Any] | None = None
) -> Model:
    """The tree as the model; `context` goes to its validators.

    Raises:
        ConfigError: names the first mistake and counts the rest.
    """
    try:
        return model.model_validate(tree, context=context)
    except ValidationError as error:
        # A misspelt key also leaves the right one missing; the misspelling is what to say first.
        details = sorted(error.errors(), key=lambda found: found["type"] == "missing")
        raise first([_explained(model, found, places) for found in details]) from None


def first(errors: list[str]) -> ConfigError:
    """The first of these mistakes, with the number of the others."""
    rest = len(errors) - 1
    return ConfigError(errors[0] + (f" (and {rest} more error{'s' if rest > 1 else ''})" if rest else ""))


def place(path: Path, places: Mapping[Path, str]) -> str:
    """Where the path, or what holds it, was given, as a prefix; empty when nowhere."""
    for length in range(len(path), 0, -1):
        if found := places.get(path[:length]):
            return f"{found}: "
    return ""


def _explained(root: type[BaseModel], details: ErrorDetails, places: Mapping[Path, str]) -> str:
    path = details["loc"]
    # pydantic marks a bad key of a mapping by a step that stands nowhere in the file.
    path = path[:-1] if path and path[-1] == "[key]" else path
    where = place(path, places)
    name = dotted(path)
    if details["type"] == "extra_forbidden":
        return f"{where}{name}: unknown key{_did_you_mean(root, path)}"
    if details["type"] == "missing":
        return f"{where}{name}: is missing"
    text = _WANTED.get(details["type"]) or details["msg"]
    text = text.removeprefix("Value error, ").removeprefix("Input ").replace("should ", "must ")
    return f"{where}{name}{': ' if name else ''}{text[:1].lower()}{text[1:]}"


def _did_you_mean(root: type[BaseModel], path: Path) -> str:
    known = _settings(root, path[:-1])
    key = str(path[-1])
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {dotted((*path[:-1], near[0]))}?"
    elsewhere = [f"{section}.{key}" for section in root.model_fields if key in _settings(root, (section,))]
    if len(path) == 1 and elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; known here: {', '.join(known)}"


def _settings(root: type[BaseModel], path: Path) -> list[str]:
    """The keys that a mapping at the path may have; none where no model stands there."""
    model: type[BaseModel] | None = root
    for step in path:
        if model is not None and step in model.model_fields:
            model = next(_models(model.model_fields[str(step)].annotation), None)
        # Any other step is an index of a list or a key of a mapping, whose model was found already.
    return list(model.model_fields) if model is not None and (not path or model is not root) else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, however it wraps them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)

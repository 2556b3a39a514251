"""Every section of a cluster specification: unknown keys, impossible numbers, files that are missing.

Worked out from the models, so that a new setting is looked at without a line here.
"""

import copy
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types as bounds
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sensorium.cluster.deploy.checks import read
from sensorium.cluster.deploy.spec import ClusterSpec, LocalFile
from sensorium.cluster.errors import ConfigError

Step = str | int
Place = tuple[Step, ...]

BASE: dict[str, Any] = {"name": "a", "nodes": {"head": {"hosts": 1}}}
UNKNOWN = "qzx"
KEY = "mqtt"
"""In every mapping, since one takes names of protocols only."""


def inside(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Place, Any, tuple[Any, ...]]]:
    """The types that a value may have, with the steps to them from the value and what is said of each."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kept = annotation.__metadata__
        given = [m for f in kept for m in (f.metadata if isinstance(f, FieldInfo) else [f])]
        yield from inside(arguments[0], (*metadata, *given))
    elif origin in (Union, types.UnionType):
        for one in arguments:
            yield from inside(one, metadata)
    elif origin is list:
        yield from (((0, *path), kind, said) for path, kind, said in inside(arguments[0]))
    elif origin is dict:
        yield from (((KEY, *path), kind, said) for path, kind, said in inside(arguments[1]))
    else:
        yield (), annotation, metadata


def settings(model: type[BaseModel], place: Place = ()) -> Iterator[tuple[Place, Any, tuple[Any, ...]]]:
    """Every setting of the model and of the sections in it, by its place."""
    for name, field in model.model_fields.items():
        for path, kind, said in inside(field.annotation, tuple(field.metadata)):
            here = (*place, name, *path)
            yield here, kind, said
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings(kind, here)


EVERY = list(settings(ClusterSpec))
SECTIONS = {(): ClusterSpec} | {
    place: kind for place, kind, _ in EVERY if isinstance(kind, type) and issubclass(kind, BaseModel)
}
NUMBERS = [(place, kind, said) for place, kind, said in EVERY if kind in (int, float)]
FILES = [place for place, _, said in EVERY if LocalFile.__metadata__[-1] in said]


def shown(place: Place) -> str:
    """As messages name it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def with_value(place: Place, value: Any) -> dict[str, Any]:
    """A specification that says this, and little else."""
    tree = copy.deepcopy(BASE)
    at: Any = tree
    for step, following in zip(place, (*place[1:], None), strict=True):
        inner: Any = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(at, list):
            at.append(inner)
        elif following is None or step not in at:
            at[step] = inner
        at = at[step]
    return tree


def refused(folder: Path, tree: dict[str, Any]) -> str:
    """The one line that it is refused with."""
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as caught:
        read(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}:"), line
    assert [entry.name for entry in folder.iterdir()] == ["c.yaml"]
    return line


def impossible(kind: type, said: tuple[Any, ...]) -> Iterator[Any]:
    """Values that the setting must not have."""
    yield "many"
    yield [1]
    yield from (1.5,) if kind is int else (math.nan, math.inf, -math.inf)
    for bound in said:
        match bound:
            case bounds.Ge(ge=limit):
                yield limit - 1  # type: ignore[operator]
            case bounds.Gt(gt=limit) | bounds.Lt(lt=limit):
                yield limit
            case bounds.Le(le=limit):
                yield limit + 1  # type: ignore[operator]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: shown(section) or "top")
def test_an_unknown_key(tmp_path: Path, section: Place) -> None:
    line = refused(tmp_path, with_value((*section, UNKNOWN), 1))
    assert f"{shown((*section, UNKNOWN))}: unknown key" in line


def in_section(section: Place, place: Place) -> bool:
    """Whether the setting is this section's own."""
    return place[: len(section)] == section and not any(
        len(other) > len(section) and place[: len(other)] == other for other in SECTIONS
    )


COUNTED = [section for section in SECTIONS if any(in_section(section, place) for place, _, _ in NUMBERS)]


@pytest.mark.parametrize("section", COUNTED, ids=lambda section: shown(section) or "top")
def test_impossible_numbers(tmp_path: Path, section: Place) -> None:
    for place, kind, said in NUMBERS:
        if in_section(section, place):
            for value in impossible(kind, said):
                line = refused(tmp_path, with_value(place, value))
                assert shown(place) in line, (value, line)


@pytest.mark.parametrize("place", FILES, ids=shown)
def test_a_missing_file(tmp_path: Path, place: Place) -> None:
    line = refused(tmp_path, with_value(place, "nowhere.pem"))
    assert f"{shown(place)}: no such file: {tmp_path / 'nowhere.pem'}" in line


def test_whole_numbers_have_bounds() -> None:
    """A count or a size that nothing bounds would be found out on the nodes."""
    upper = (bounds.Le, bounds.Lt)
    free = [
        shown(p) for p, kind, said in NUMBERS if kind is int and not any(isinstance(b, upper) for b in said)
    ]
    assert free == []

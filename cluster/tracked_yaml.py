"""YAML read into plain values together with the line that each came from, so that errors can point at it."""

from collections.abc import Hashable
from pathlib import Path as FilePath
from typing import Any

import yaml

Path = tuple[str | int, ...]
MAX_DEPTH = 16
"""Nesting beyond this is a mistake (or an alias that contains itself), not a configuration."""
MAX_FILE_BYTES = 1 << 20


class YamlError(ValueError):
    """The text is no YAML, or not YAML as configurations use it. The message starts with FILE:LINE."""


def dotted(path: Path) -> str:
    """`("profiles", "pump", "windows", 0)` as `profiles.pump.windows[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def read(file: FilePath) -> tuple[dict[str, Any], dict[Path, str]]:
    """The file's mapping, and FILE:LINE of each path in it. An empty file is an empty mapping.

    Raises:
        YamlError: it cannot be read, is malformed, repeats a key, or is no mapping.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise YamlError(f"{file}: larger than {MAX_FILE_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise YamlError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"{file}: not UTF-8 at byte {error.start}") from error
    return parse(text, str(file))


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path, str]]:
    """As `read`, of a text that is called `name` in messages."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        reader = _Reader(loader, name)
        tree = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise YamlError(f"{name}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{name}: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise YamlError(f"{name}:{node.start_mark.line + 1}: must be a mapping of sections")
    return tree, reader.places


class _Reader:
    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self.places: dict[Path, str] = {}
        self._loader = loader
        self._name = name

    def value(self, node: yaml.Node, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise YamlError(f"{self._at(node)}: nested deeper than {MAX_DEPTH} levels")
        self.places.setdefault(path, self._at(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            if not isinstance(key, Hashable) or not isinstance(key, str):
                raise YamlError(f"{self._at(key_node)}: {dotted(path) or 'the file'}: keys must be text")
            inner = (*path, key)
            if key in tree:
                raise YamlError(f"{self._at(key_node)}: {dotted(inner)}: given twice")
            self.places[inner] = self._at(key_node)
            tree[key] = self.value(value_node, inner)
        return tree

    def _at(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

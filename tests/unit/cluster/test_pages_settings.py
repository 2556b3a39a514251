"""What the pages say of the command line and the configuration is so: commands, options, variables, settings.

Nothing is started for it. What a platform answers is typed in `tests/integration/test_pages.py` and beside.
"""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
import pytest
import typer
import yaml
from deploy_orders import example
from pydantic import BaseModel
from shell import sensorium
from typer.testing import CliRunner

from sensorium.cluster import config
from sensorium.cluster.audit import noted
from sensorium.cluster.cli import app
from sensorium.cluster.config import ENVIRONMENT, Config
from sensorium.cluster.errors import ConfigError
from sensorium.ingest.command_requests import decode_request
from sensorium.ingest.decode import TelemetryDecoder

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOY = ROOT / "docs/deploy.md"
"""Its YAML is a cluster specification's."""
TYPED = ["sensorium", "deploy", "cluster.yaml"]
OTHERS = {"SENSORIUM_SEED", "ALARM", "CURSOR", "TLS"}
"""Variables of the examples that are none of the configuration: of the tests, and of the shell."""
NO_SETTINGS = {"cluster.scale"}
"""What is written like a setting: of the audit log."""
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Command(NamedTuple):
    """A command of an example: the variables that stand before it, and its words."""

    page: str
    variables: dict[str, str]
    words: list[str]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\;|&()])+|\n|[;|&()]+""", re.DOTALL)
_VARIABLE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)


def commands(page: Path) -> Iterator[Command]:
    """Those of the shell blocks, with quotes taken off."""
    for block in blocks(page, "sh"):
        plain = re.sub(r"(?m)(?<!\S)#.*$", "", block.replace("\\\n", " "))
        variables: dict[str, str] = {}
        words: list[str] = []
        for word in (*_WORD.findall(plain), "\n"):
            if word[0] in "\n;|&()":
                if words or variables:
                    yield Command(page.name, variables, words)
                variables, words = {}, []
            elif not words and (given := _VARIABLE.fullmatch(word)):
                variables[given[1]] = _unquoted(given[2])
            else:
                words.append(_unquoted(word))


def _unquoted(word: str) -> str:
    return re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda quoted: quoted[1] or quoted[2] or "", word)


def ours(command: Command) -> list[str] | None:
    """The arguments of `sensorium`, also where a page has it run on another machine."""
    words = command.words[2:] if command.words[:1] == ["ssh"] else command.words
    return words[1:] if words and Path(words[0]).name == "sensorium" else None


ALL = [command for page in PAGES for command in commands(page)]


def checking(group: typer.Typer) -> typer.Typer:
    """The same commands, which do nothing."""
    same = typer.Typer(rich_markup_mode=None)

    def stub(made: Any) -> Any:
        @functools.wraps(made)
        def nothing(*_: Any, **__: Any) -> None:
            """Its arguments were taken."""

        return nothing

    for each in group.registered_commands:
        same.command(each.name, context_settings=each.context_settings)(stub(each.callback))
    for below in group.registered_groups:
        assert below.typer_instance is not None
        same.add_typer(checking(below.typer_instance), name=below.name)
    return same


@pytest.fixture(scope="module")
def parser() -> typer.Typer:
    return checking(app)


def test_every_command_of_the_examples_is_one(
    parser: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    count, wrong = 0, []
    for command in ALL:
        if (arguments := ours(command)) is None:
            continue
        count += 1
        said = CliRunner().invoke(parser, arguments)
        # The files of the examples are not here. That is found last.
        if said.exit_code and not re.search(r"(file|dir|path) '[^']*' does not exist", said.output):
            wrong.append(f"{command.page}: sensorium {' '.join(arguments)}: {said.output}")
    assert not wrong, "\n".join(wrong)
    assert count > 35


def test_every_command_that_a_page_names_is_one(parser: typer.Typer) -> None:
    count, wrong = 0, []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for named in re.findall(r"`sensorium ([^`]+)`", text):
            count += 1
            # With it, what a sentence leaves out is not missed.
            said = CliRunner().invoke(parser, [*named.split(), "--help"])
            if said.exit_code:
                wrong.append(f"{page.name}: sensorium {named}: {said.output}")
    assert not wrong, "\n".join(wrong)
    assert count > 20


@pytest.mark.parametrize(
    "mistaken",
    ["upp", "up --data-dri x", "up --http-port eighty", "drain", "audit lists", "deploy a --dry-run yes"],
)
def test_a_mistake_would_be_found(parser: typer.Typer, mistaken: str) -> None:
    assert CliRunner().invoke(parser, mistaken.split()).exit_code == 2


def test_every_target_of_make_is_one() -> None:
    named = {word for command in ALL if command.words[:1] == ["make"] for word in command.words[1:]}
    targets = {word for word in named if "=" not in word}
    assert targets
    assert targets <= TARGETS


_FILE = re.compile(r"(_dir: )?((?<![\w/.:-])/(?:etc|run)/[\w./-]+|(?<![\w/.-])pki/[\w.-]+)")


def placed(text: str, folder: Path) -> str:
    """The text with files and directories in `folder`, where they are."""

    def there(match: re.Match[str]) -> str:
        file = folder / match[2].lstrip("/")
        (file if match[1] else file.parent).mkdir(parents=True, exist_ok=True)
        if not match[1]:
            file.touch()
        return f"{match[1] or ''}{file}"

    return _FILE.sub(there, text)


def test_every_variable_of_the_examples_is_read(tmp_path: Path) -> None:
    wrong, count = [], 0
    for command in ALL:
        variables = {name: text for name, text in command.variables.items() if name not in OTHERS}
        given = {name: placed(text, tmp_path) for name, text in variables.items()}
        count += len(given)
        wrong += [f"{command.page}: {name}" for name in given if name not in ENVIRONMENT]
        try:
            config.load(environment=given)
        except ConfigError as error:
            wrong.append(f"{command.page}: {error}")
    assert not wrong, "\n".join(wrong)
    assert count > 10


SETTINGS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    if page != DEPLOY
    for number, text in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", SETTINGS)
def test_every_configuration_of_the_pages_is_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(placed(text, tmp_path))
    # A platform that starts with it writes it into the audit log.
    msgspec.json.encode(noted(config.load(file)))


def _known(path: list[str]) -> bool:
    """Whether the configuration has this setting, or one that begins so."""
    kind: Any = Config
    for name in path:
        while not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            # What a mapping or a list holds, or what is left of an optional one.
            below = [each for each in get_args(kind) if each is not type(None)]
            if not below:
                return False
            kind = below[-1] if get_origin(kind) is dict else below[0]
        if name not in kind.model_fields:
            return False
        kind = kind.model_fields[name].annotation
    return True


def test_every_setting_that_a_page_names_is_one() -> None:
    wrong, count = [], 0
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?::[^`]*)?`", page.read_text()):
            path = name.split(".")
            if (
                path[0] in Config.model_fields
                and path[-1] not in ("py", "md", "yaml")
                and name not in NO_SETTINGS
            ):
                count += 1
                wrong += [] if _known(path) else [f"{page.name}: {name}"]
    assert not wrong, "\n".join(wrong)
    assert count > 25


def _merged(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(tree[name], value) if isinstance(value, dict) and name in tree else value
        for name, value in more.items()
    }
    return {**tree, **both}


def _specified(file: Path, *without: str) -> None:
    """Puts what the page has in YAML into an example, whose database is then that of a variable."""
    tree = yaml.safe_load(file.read_text())
    tree["platform"].pop("storage", None)
    for text in blocks(DEPLOY, "yaml"):
        more = yaml.safe_load(text)
        tree = _merged(tree, {name: more[name] for name in more.keys() - without})
    (file.parent / "cluster.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("name", "without"), [("cluster.yaml", ["kubernetes"]), ("cluster-kuberay.yaml", ["security"])]
)
def test_a_cluster_is_deployed_as_its_page_says(name: str, without: list[str], tmp_path: Path) -> None:
    """With the token and the authority that it makes, up to what needs machines."""
    file = example(tmp_path, name)
    _specified(file, *without)
    here = file.parent
    shutil.copy(tmp_path / "secrets.env", here)
    keys = next(block for block in blocks(DEPLOY, "sh") if "openssl" in block)
    subprocess.run(["bash", "-euc", keys], cwd=here, check=True, capture_output=True, timeout=30)
    assert {key.stat().st_mode & 0o777 for key in (here / "auth_token", here / "ca.key")} == {0o600}
    asked = [command.words[1:] for command in commands(DEPLOY) if command.words[:3] == TYPED]
    assert len(asked) == 4
    for arguments in asked:
        if name == "cluster.yaml" and "--target" in arguments:
            continue
        runs = not {"--dry-run", "--write-only"} & set(arguments)
        done = sensorium(*arguments, *(["--dry-run"] if runs else []), cwd=here)
        assert done.returncode == 0, done.stderr
    assert list(here.glob("deploy/plant-*/*.yaml")), "what --write-only writes"


def test_detectors_are_used_as_their_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = blocks(ROOT / "docs/detectors.md", "python")
    exec(compile(snippet, "docs/detectors.md", "exec"), {})
    first, *peers = capsys.readouterr().out.splitlines()
    assert float(first.split()[0]) > 0.5
    assert [peer.split()[0] for peer in peers] == ["a", "b", "c", "d"]


def test_what_is_written_to_kafka_can_be_read() -> None:
    """As the page of streams gives it to `kcat`; the rest of it needs brokers, which other tests have."""
    echoed = [asked.words[1] for asked in commands(ROOT / "docs/streams.md") if asked.words[:1] == ["echo"]]
    (_, readings), (device_id, command) = (text.split("|") for text in echoed)
    assert TelemetryDecoder().decode(readings.encode(), 0) == [(0, ("temperature",), [23.5], False)]
    asked = decode_request(device_id, command.encode(), None, "device-commands-in/0/0", 0)
    assert asked is not None
    assert (asked.device_id, asked.command) == ("sensor-001", "open")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("storage.retention.raw_days", True),
        ("storage.retention.row_days", False),
        ("profiles.windows", True),
        ("storage.url.host", False),
    ],
)
def test_settings_are_told_from_mistakes(name: str, *, known: bool) -> None:
    assert _known(name.split(".")) is known

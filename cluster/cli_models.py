"""`sensorium train` and `sensorium models`: parsing and printing; what they do stands in `models`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from sensorium.cluster import config as configuration
from sensorium.cluster.errors import ConfigError

models = typer.Typer(
    help="Trained models: which there are, and which judge the devices.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Of the platform [.sensorium].")]
_Config = Annotated[Path | None, typer.Option("--config", help="The platform's configuration file.")]
_Name = Annotated[str, typer.Argument(help="Of a model.")]
_Version = Annotated[int | None, typer.Option("--version", min=1, help="The newest one by default.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]

KINDS = ("outliers", "failure")


def train(
    kind: Annotated[str, typer.Argument(help="outliers, or failure.")],
    name: Annotated[str, typer.Argument(help="Of the model; what it is trained to is its next version.")],
    device_type: Annotated[str, typer.Option("--type", help="Of the devices to learn from, and to judge.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="To look at; may be given again. Outliers: by default what most devices have."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="metadata.KEY=VALUE or id=ID of devices.")] = None,
    since: Annotated[str, typer.Option(help="ISO 8601 (UTC), or so long ago: 30d.")] = "30d",
    until: Annotated[str | None, typer.Option(help="As --since; by default now.")] = None,
    rule: Annotated[str, typer.Option(help="Failure: the id of the rule whose alarms are failures.")] = "",
    before: Annotated[float, typer.Option(min=1, help="Failure: seconds before one that count.")] = 7200.0,
    window: Annotated[int, typer.Option(min=8, help="Failure: readings of a window.")] = 64,
    activate: Annotated[bool, typer.Option("--activate", help="Set it to work at once.")] = False,
    as_json: _Json = False,
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Train a model on stored history, by Ray tasks of the running platform, and register it."""
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of model: {' or '.join(KINDS)}")
    settings = _settings(data_dir, config)
    from sensorium.actors.training import Training
    from sensorium.cluster import models as page

    now = datetime.now(UTC)
    training = Training(
        name,
        "failure" if kind == "failure" else "outliers",
        device_type,
        _ms("--since", since, now),
        _ms("--until", until, now),
        tuple(metric or ()),
        page.selected(where or []),
        rule,
        before,
        window,
    )
    info = page.train(settings, training, Console(stderr=True))
    if activate:
        page.activate(settings, info.name, info.version)
    _print(info, as_json, page.told(info) + ("\nat work" if activate else ""))


@models.command("list")
def list_models(as_json: _Json = False, data_dir: _DataDir = None, config: _Config = None) -> None:
    """All versions of all models, and which are at work."""
    from sensorium.cluster import models as page

    items = page.listed(_settings(data_dir, config))
    if as_json:
        rows = [{**msgspec.to_builtins(info), "active": active} for info, active in items]
        print(msgspec.json.encode(rows).decode())
    else:
        Console().print(page.table(items))


@models.command("show")
def show_model(
    name: _Name, version: _Version = None, data_dir: _DataDir = None, config: _Config = None
) -> None:
    """What is known of a version, as JSON: metrics, features, time, scores, libraries."""
    from sensorium.cluster import models as page

    info = page.shown(_settings(data_dir, config), name, version)
    print(msgspec.json.format(msgspec.json.encode(info), indent=2).decode())


@models.command("activate")
def activate_model(
    name: _Name, version: _Version = None, data_dir: _DataDir = None, config: _Config = None
) -> None:
    """Let a version judge its device type from now on, instead of any other version of it."""
    from sensorium.cluster import models as page

    info = page.activate(_settings(data_dir, config), name, version)
    print(f"{info.label}: at work for {info.device_type}")


@models.command("deactivate")
def deactivate_model(name: _Name, data_dir: _DataDir = None, config: _Config = None) -> None:
    """Take a model from work."""
    from sensorium.cluster import models as page

    page.deactivate(_settings(data_dir, config), name)
    print(f"{name}: not at work any more")


@models.command("delete")
def delete_model(
    name: _Name,
    version: Annotated[int, typer.Option("--version", min=1, help="Which one.")],
    data_dir: _DataDir = None,
    config: _Config = None,
) -> None:
    """Forget a version that is not at work. Its number is not given again."""
    from sensorium.cluster import models as page

    page.delete(_settings(data_dir, config), name, version)
    print(f"{name}@{version}: deleted")


def _settings(data_dir: Path | None, config: Path | None) -> configuration.Config:
    return configuration.load(config, os.environ, {"--data-dir": ("storage.data_dir", data_dir)})


def _ms(option: str, text: str | None, now: datetime) -> int:
    from sensorium.cluster.export import moment

    found = moment(option, text, now)
    when = now if found is None else datetime.fromisoformat(found)
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1000)


def _print(info: Any, as_json: bool, told: str) -> None:
    print(msgspec.json.encode(info).decode() if as_json else told)

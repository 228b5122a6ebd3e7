"""Arguments that several verbs take, and the verbs that every command has."""

from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Annotated

import typer

from clip_common.cli.display import console

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Configuration overrides.", show_default=False),
]
"""A plain list of `section.field=value`, so that an unknown option is still an error."""

ConfigName = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME-or-FILE", help="A named configuration, or a YAML file.", show_default=False),
]

Resume = Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Resume this run folder.")]

NewFolder = Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)]


def add_config_verb(
    app: typer.Typer, *, package: str, example: str, verb: str = "config", schema: str = "Config"
) -> None:
    """Add `PACKAGE config`, which prints the configuration that options and overrides resolve to.

    Args:
        app: The package's application.
        package: Import name of the package.
        example: Arguments of an example, for the help.
        verb: Name of the command.
        schema: Class of the configuration in `PACKAGE.config`.
    """
    help = f"""\
        Print the full configuration as YAML: every knob with its value.

        Example:

            {package} {verb} {example}
        """

    @app.command(verb, help=dedent(help))
    def show_config(overrides: Overrides = None, config: ConfigName = None) -> None:
        from clip_common.config import load_config, to_yaml

        fields: type = getattr(import_module(f"{package}.config"), schema)
        typer.echo(to_yaml(load_config(fields, config=config, overrides=overrides or [], package=package)))


def add_prefetch_verb(
    app: typer.Typer, *, package: str, example: str, name: str | None = None, pretrained: str | None = None
) -> None:
    """Add `PACKAGE prefetch`, which downloads weights so that no network is needed later.

    Args:
        app: The package's application.
        package: Import name of the package.
        example: Arguments of an example, for the help.
        name: Default of the architecture; None: it must be given.
        pretrained: Default of the tag of the weights.
    """
    help = f"""\
        Download weights once, verify them, and print where they are; afterwards no network is needed.

        Example:

            {package} prefetch {example}
        """

    @app.command(help=dedent(help))
    def prefetch(
        name: Annotated[
            str, typer.Argument(help="open_clip architecture, org/name of a transformers model, or hf-hub:org/name.")
        ] = name or ...,  # type: ignore[assignment]
        pretrained: Annotated[str | None, typer.Argument(help="Tag of the weights.")] = pretrained,
    ) -> None:
        from clip_common.backbones import prefetch as fetch

        console.print(str(fetch(name, pretrained=pretrained)), soft_wrap=True)

"""The ``sparsekit`` command. Everything heavy is imported by the subcommand that needs it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsekit import __version__
from sparsekit.errors import SparsekitError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sparsekit.plugins import Registered


class _Commands(click.Group):
    """A group whose commands end in one line instead of a traceback where an error was raised on purpose."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except SparsekitError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sparsekit")
def main() -> None:
    """2:4 (n:m) structured sparsity for TensorFlow."""


@main.command()
def plugins() -> None:
    """List op handlers, targets and criteria, and where each comes from."""
    from sparsekit.plugins import default_registry
    from sparsekit.table import text_table

    registry = default_registry()

    def rows(kind: str, offers: Mapping[str, Registered[Any]]) -> list[tuple[str, ...]]:
        return [
            (
                kind,
                name,
                f"{type(entry.value).__module__}.{type(entry.value).__qualname__}",
                entry.plugin.distribution,
                entry.plugin.version,
                f"overrides {entry.overrides.distribution}" if entry.overrides else "",
            )
            for name, entry in offers.items()
        ]

    table = text_table(
        ("kind", "name", "class", "distribution", "version", ""),
        [
            *rows("op handler", registry.handlers),
            *rows("target", registry.targets),
            *rows("criterion", registry.criteria),
        ],
        _terminal_width(),
    )
    click.echo(table, nl=False)


@main.command()
def targets() -> None:
    """List the target profiles: names to ask for, and whether 2:4 gains there."""
    from sparsekit.plugins import default_registry
    from sparsekit.table import text_table

    profiles = default_registry().profiles
    table = text_table(
        ("profile", "products", "gains from", "chips", "other names"),
        [
            (
                profile.name,
                profile.title,
                ", ".join(profile.patterns) if profile.gains else "no",
                ", ".join(profile.chips),
                ", ".join(profile.products),
            )
            for profile in profiles
        ],
        _terminal_width(),
    )
    click.echo(table, nl=False)
    click.echo(
        "\nAsk by any of these names: target=..., target in a config, or the environment variable SPARSEKIT_TARGET."
    )


@main.command()
@click.option("--seeds", default=5, show_default=True, help="How many networks to train.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo_output"),
    show_default=True,
    help="Where the models go.",
)
def demo(seeds: int, output: Path) -> None:
    """Train, prune, retrain and verify a small network on handwritten digits (needs scikit-learn)."""
    import runpy

    script = _demo_script()
    sys.argv = [str(script), "--seeds", str(seeds), "--output", str(output)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def _terminal_width() -> int | None:
    """The width of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _demo_script() -> Path:
    """The example's script: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package, package.parent):
        script = folder / "examples" / "amct_flow" / "demo.py"
        if script.is_file():
            return script
    raise click.ClickException("the demo is not part of this installation; run `make demo` in a checkout")

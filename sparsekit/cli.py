"""The ``sparsekit`` command. Everything heavy is imported by the subcommand that needs it."""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sparsekit import __version__, progress
from sparsekit.errors import SparsekitError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sparsekit.plugins import Registered


class _Refused(click.ClickException):
    exit_code = 2  # 1 is an answer: `verify` says with it that a model is not sparse


class _Commands(click.Group):
    """A group whose commands end in one line instead of a traceback where an error was raised on purpose."""

    def invoke(self, context: click.Context) -> object:
        try:
            with progress.shown():
                return super().invoke(context)
        except SparsekitError as error:
            raise _Refused(str(error)) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            traceback.print_exc()
            raise _Refused(f"unexpected {type(error).__name__}; please report it with the lines above") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sparsekit")
def main() -> None:
    """2:4 (n:m) structured sparsity for TensorFlow.

    Completion in the shell: put eval "$(_SPARSEKIT_COMPLETE=bash_source sparsekit)" into ~/.bashrc, or zsh_source into
    ~/.zshrc.
    """


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


_MODEL = click.argument("model", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_CONFIG = click.option("--config", type=click.Path(path_type=Path), help="A TOML file, or AMCT's text format.")
_TARGET = click.option("--target", help="A product, chip or profile name; see `sparsekit targets`.")
_OUTPUTS = click.option("--outputs", help="Comma-separated operations whose results are used; default: all.")
_REPORT = click.option(
    "--report", "page", type=click.Path(path_type=Path), help="Where to write an HTML page about it."
)
_RECORD = click.option("--record", type=click.Path(path_type=Path), help="The record of the pruned layers.")


@main.command()
@_MODEL
@_CONFIG
@_TARGET
@_OUTPUTS
@_JSON
def plan(model: Path, config: Path | None, target: str | None, outputs: str | None, as_json: bool) -> None:
    """Say which layers of MODEL would be pruned, and why not the others.

    Per layer: its groups, its density as stored and as planned, the share of the sum of |weight| that stays, and of
    the multiply-adds ("work"). MODEL is a frozen .pb or .pbtxt, the folder of a SavedModel, a .tflite or an .onnx file.
    """
    import sparsekit
    from sparsekit.reporting.text import report_json, text

    found = sparsekit.report(model, config, outputs=_names(outputs), target=target)
    click.echo(report_json(found) if as_json else text(found, _terminal_width()))


@main.command()
@_MODEL
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the page goes.")
@click.option(
    "--estimates",
    type=click.Path(path_type=Path),
    help="What tools or devices say of the model: a JSON list of {source, quantity, dense, pruned}.",
)
@_CONFIG
@_TARGET
@_OUTPUTS
@_JSON
def report(
    model: Path,
    output: Path,
    estimates: Path | None,
    config: Path | None,
    target: str | None,
    outputs: str | None,
    as_json: bool,
) -> None:
    """Write a page about MODEL: what `plan` says, with pictures. One HTML file that needs no network.

    MODEL is a frozen .pb or .pbtxt, the folder of a SavedModel, a .tflite or an .onnx file. Of a model that is pruned
    already the page shows what is stored.
    """
    import sparsekit
    from sparsekit.reporting.estimates import load_estimates
    from sparsekit.reporting.text import report_json

    figures = load_estimates(estimates) if estimates else ()
    found = sparsekit.report(model, config, outputs=_names(outputs), target=target, estimates=figures)
    found.save(output)
    click.echo(report_json(found) if as_json else f"Saved as {output}.")


@main.command()
@_MODEL
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the pruned model goes.")
@_CONFIG
@_TARGET
@_OUTPUTS
@click.option("--record", type=click.Path(path_type=Path), help="Where to write the record of the pruned layers.")
@click.option(
    "--calibration",
    multiple=True,
    metavar="FILES",
    help="An .npz with samples of the model's inputs, by name, or a quoted pattern such as 'samples/*.npz': masks and "
    "weights are chosen on them. May be given several times.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="With --calibration: a folder that keeps solved layers. After a stop the same command goes on from there.",
)
@click.option(
    "--runner",
    help="With --calibration: let an Apache Beam pipeline do the work: DirectRunner, FlinkRunner, SparkRunner, "
    "DataflowRunner. Its own options come last, after --.",
)
@_REPORT
@_JSON
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def prune(
    model: Path,
    output: Path,
    config: Path | None,
    target: str | None,
    outputs: str | None,
    record: Path | None,
    calibration: tuple[str, ...],
    resume: Path | None,
    runner: str | None,
    page: Path | None,
    as_json: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Prune MODEL in one shot: choose masks from its weights and write zeros. MODEL itself stays as it is.

    With --calibration masks and weights are chosen together, so that every layer's outputs on the samples stay; layers
    with few multiply-adds that cost most at the model's outputs stay dense (keep_dense in a config; verify with the
    record then).
    """
    import sparsekit
    from sparsekit.table import plain, to_json

    if beam_options and not runner:
        hint = " (quote a pattern of files)" if calibration else ""
        raise click.UsageError(f"Got unexpected extra arguments: {' '.join(beam_options)}{hint}")
    try:
        result: Any = sparsekit.prune(
            model,
            config,
            outputs=_names(outputs),
            target=target,
            record=record,
            calibration=list(calibration) or None,
            resume=resume,
            beam=[f"--runner={runner}", *beam_options] if runner else None,
        )
    except KeyboardInterrupt:
        if calibration:
            click.echo(_how_to_resume(resume), err=True)
        raise
    if page is not None:
        sparsekit.report(result).save(page)  # first: OUT may replace MODEL
    result.save(output)
    if as_json:
        accounts = {"accounts": plain(result.accounts)} if result.accounts else {}
        if result.normalizations:
            accounts["normalizations"] = plain(result.normalizations)
        click.echo(to_json(result.plan, summary=result.plan.summary(), **accounts))
    else:
        click.echo(str(result))
        click.echo(f"Saved as {output}.")
        if result.kept_dense:
            click.echo(_how_to_verify(output, record))
        if resume:
            click.echo(f"Solved layers are still in {resume}; remove it when you are done.")


def _how_to_resume(folder: Path | None) -> str:
    if folder is None:
        return "Stopped; nothing is kept. With --resume FOLDER every solved layer would be."
    from sparsekit.calibration.resuming import FinishedLayers

    count = FinishedLayers(folder).count()
    return f"Stopped; solved layers so far, kept in {folder}: {count}. The same command goes on from there."


def _how_to_verify(output: Path, record: Path | None) -> str:
    command = f"sparsekit verify {shlex.quote(str(output))} --record"
    if record is None:
        return f"To verify: {command} FILE, which this command writes with --record FILE."
    return f"To verify: {command} {shlex.quote(str(record))}"


@main.command()
@_MODEL
@click.option(
    "--calibration",
    required=True,
    multiple=True,
    metavar="FILES",
    help="An .npz with samples of the model's inputs, by name, or a quoted pattern. May be given several times.",
)
@_CONFIG
@_OUTPUTS
@click.option("--worst", type=click.IntRange(0), help="Into the written config: leave the worst so many layers dense.")
@click.option(
    "--above",
    type=click.FloatRange(0),
    help="Into the written config: leave all layers dense whose error at the model's outputs is above it (0.01: 1 %).",
)
@click.option("--write-config", type=click.Path(path_type=Path), help="Where to write a config, as TOML.")
@_REPORT
@_JSON
def sensitivity(
    model: Path,
    calibration: tuple[str, ...],
    config: Path | None,
    outputs: str | None,
    worst: int | None,
    above: float | None,
    write_config: Path | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Say how much each layer of MODEL decides: prune it alone, by magnitude, and compare the outputs.

    Per layer: the squared change of its own outputs, relative to their square, and that of the model's outputs,
    relative to what they vary; the worst layer first. With --write-config and --worst or --above the config (of
    --config, or the default) is written with the worst layers in skip_layers. MODEL is a frozen .pb or .pbtxt, or the
    folder of a SavedModel.
    """
    import sparsekit
    from sparsekit.table import to_json

    if (write_config is None) != (worst is None and above is None) or (worst is not None and above is not None):
        raise click.UsageError("--write-config needs one of --worst and --above, and these need it.")
    found = sparsekit.sensitivity(model, config, calibration=list(calibration), outputs=_names(outputs))
    if write_config is not None:
        found.save_config(write_config, worst=worst, above=above)
    if page is not None:
        sparsekit.report(model, config, outputs=_names(outputs), sensitivity=found).save(page)
    if as_json:
        click.echo(to_json(found, summary=found.summary()))
        return
    click.echo(f"{found.table(_terminal_width())}{found.summary()}")
    for path in (write_config, page):
        if path is not None:
            click.echo(f"Saved as {path}.")


@main.command()
@click.argument("masked", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the pruned model goes.")
@_RECORD
@_CONFIG
@_TARGET
@_OUTPUTS
@_JSON
def strip(
    masked: Path,
    output: Path,
    record: Path | None,
    config: Path | None,
    target: str | None,
    outputs: str | None,
    as_json: bool,
) -> None:
    """Take the masks out of MASKED, which was retrained with them, and write zeros in its weights.

    MASKED is a frozen .pb or .pbtxt, or the folder of a SavedModel that was exported in TF1 style. It stays as it is;
    the pruned model is saved in the kind it came in, and then verified as `sparsekit verify OUT` does it, with the same
    exit status. --config and --target count there; without a record --config says which pattern to expect.
    """
    import sparsekit

    pruned = sparsekit.strip(masked, record=record, outputs=_names(outputs))
    sparsekit.save(pruned, output)
    if not as_json:
        click.echo(f"Saved as {output}.")
    _verify(output, record, config, target, outputs, as_json)


@main.command()
@_MODEL
@_RECORD
@_CONFIG
@_TARGET
@_OUTPUTS
@_JSON
def verify(
    model: Path,
    record: Path | None,
    config: Path | None,
    target: str | None,
    outputs: str | None,
    as_json: bool,
) -> None:
    """Say whether the weights of MODEL follow their pattern. Exit status: 0 sparse, 1 not, 2 could not tell.

    MODEL is a frozen .pb or .pbtxt, the folder of a SavedModel, a .tflite or an .onnx file. What the target makes of
    each layer is told, and does not count for the exit status.
    """
    _verify(model, record, config, target, outputs, as_json)


def _verify(
    model: Path, record: Path | None, config: Path | None, target: str | None, outputs: str | None, as_json: bool
) -> NoReturn:
    """Print the verification and end with its exit status."""
    import sparsekit
    from sparsekit.table import to_json

    found = sparsekit.verify(model, record=record, cfg=config, outputs=_names(outputs), target=target)
    click.echo(to_json(found, status=found.status, summary=found.summary()) if as_json else str(found))
    sys.exit({"sparse": 0, "not sparse": 1}.get(found.status, 2))


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_JSON
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Say what differs between models A and B. Exit status: 0 nothing, 1 something, 2 could not tell.

    Both are frozen .pb or .pbtxt files, or folders of SavedModels, or .tflite files, or .onnx files. Values are
    compared bit by bit; how they are encoded, the order of nodes and fingerprint.pb do not count.
    """
    import sparsekit
    from sparsekit.table import to_json

    found = sparsekit.diff(a, b)
    verdicts = {"identical": found.identical, "only_weights": found.only_weights}
    click.echo(to_json(found, summary=found.summary(), **verdicts) if as_json else str(found))
    sys.exit(0 if found.identical else 1)


def _names(outputs: str | None) -> list[str] | None:
    return None if outputs is None else [name.strip() for name in outputs.split(",") if name.strip()]


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

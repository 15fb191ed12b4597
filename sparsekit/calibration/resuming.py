"""Finished layers in a folder, so that calibration that was stopped goes on where it was, to the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
import tensorflow as tf

import sparsekit
from sparsekit.artefact.model import Model, SavedModelFolder
from sparsekit.calibration.files import checksums, npz_paths
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.solving import SolvedLayer
from sparsekit.config import PruneConfig
from sparsekit.errors import CalibrationError
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.result import LayerAccount
from sparsekit.table import plain
from sparsekit.writing import write_whole

Array: TypeAlias = npt.NDArray[Any]
Facts: TypeAlias = dict[str, str]

_RUN = "run.json"
_DIGEST = re.compile("^[0-9a-f]{64}$")
# What numpy, zipfile and json raise of a file whose bytes are not those that were written.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class FinishedLayers:
    """What became of the layers that are solved, each in a file of its own, written whole or not at all.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], facts: Facts) -> FinishedLayers:
        """Those of a run that is begun, or gone on with.

        Args:
            folder: empty or missing at first; nothing in it is ever removed.
            facts: all that decides over the result, by what it is.

        Raises:
            CalibrationError: the folder is that of another run, or of none.
            SaveError: it cannot be written to.
        """
        found = cls(folder)
        run = found.folder / _RUN
        try:
            known = {str(name): str(fact) for name, fact in dict(json.loads(run.read_text())).items()}
        except FileNotFoundError:
            if found.folder.is_dir() and any(not name.startswith(".") for name in os.listdir(found.folder)):
                raise CalibrationError(
                    "holds other files", where=str(folder), expected="a new folder, or that of a run that was stopped"
                ) from None
            write_whole(run, json.dumps(facts, indent=2).encode())
            return found
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(run, error, "Name another folder to begin anew.") from error
        differing = [
            _difference(name, known.get(name), facts.get(name))
            for name in {**facts, **known}
            if known.get(name) != facts.get(name)
        ]
        if differing:
            raise CalibrationError(
                f"is of a run that differs: {'; '.join(differing)}",
                where=str(folder),
                expected="the run that was stopped",
                hint="Name another folder to begin anew.",
            )
        return found

    def load(self, layer: str, shape: tuple[int, ...]) -> SolvedLayer | None:
        """What became of a layer; None where it is not solved.

        Args:
            layer: its name.
            shape: of its weight, as the op sees it.

        Raises:
            CalibrationError: its file is damaged.
        """
        path = self._path(layer)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                account = LayerAccount(**json.loads(str(arrays["account"])))
                weight, shift = arrays["weight"], arrays["shift"] if "shift" in arrays.files else None
            if account.name != layer or weight.shape != shape or not np.isfinite(weight).all():
                found = f"a weight {list(weight.shape)} of the layer '{account.name}'"
                raise ValueError(f"{found}, where a finite one {list(shape)} of '{layer}' is expected")
            return SolvedLayer(weight, shift, account)
        except FileNotFoundError:
            return None
        except _DAMAGED as error:
            raise _unreadable(path, error, "Remove this file to have the layer solved again.") from error

    def save(self, layer: str, solved: SolvedLayer) -> None:
        """Keep what became of a layer.

        Raises:
            SaveError: it cannot be written.
        """
        arrays: dict[str, Any] = {"weight": solved.weight, "account": json.dumps(attrs.asdict(solved.account))}
        if solved.shift is not None:
            arrays["shift"] = solved.shift
        data = io.BytesIO()
        np.savez(data, **arrays)
        write_whole(self._path(layer), data.getvalue())

    def count(self) -> int:
        """How many layers are solved."""
        return len(list(self.folder.glob("*.npz")))

    def _path(self, layer: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", layer)[-80:].strip("._")
        return self.folder / f"{readable}-{hashlib.sha256(layer.encode()).hexdigest()[:12]}.npz"


def _difference(name: str, was: str | None, now: str | None) -> str:
    """In words: digests say nothing to a reader."""
    known = (was, now)
    if all(fact is not None and _DIGEST.fullmatch(fact) for fact in known):
        return f"{name} {'differ' if name.endswith('s') else 'differs'}"
    before, after = ("not there" if fact is None else _DIGEST.sub("there", fact) for fact in known)
    return f"{name} was {before}, is {after}"


def _unreadable(path: Path, error: Exception, hint: str) -> CalibrationError:
    return CalibrationError(f"cannot be read ({error})", where=str(path), hint=hint)


# --- what decides over the result ------------------------------------------------------------------------


def facts_of_run(
    model: Model,
    outputs: Sequence[str],
    layers: Sequence[PlannedLayer],
    samples: Facts,
    config: PruneConfig,
    registry: Registry,
) -> Facts:
    """All that decides over the bytes of a calibrated model, each as a line of text."""
    settings = {
        f"config key {field.name}": json.dumps(plain(getattr(config, field.name)))
        for field in attrs.fields(PruneConfig)
        if field.eq
    }
    plan = hashlib.sha256()
    for layer in layers:
        decision = layer.decision
        plan.update(repr((decision.name, decision.uses, decision.criterion, str(decision.pattern))).encode())
    return {
        "sparsekit": sparsekit.__version__,
        "TensorFlow": tf.__version__,
        "numpy": np.__version__,
        "plugins": ", ".join(map(str, registry.plugins)),
        "the model": model_digest(model),
        "the outputs": ", ".join(outputs),
        **samples,
        **settings,
        "the plan": plan.hexdigest(),
    }


def model_digest(model: Model) -> str:
    """SHA-256 of a model: of its graph, and of the files of its folder where it has one."""
    digest = hashlib.sha256()
    for part in _parts(model.graph_def):
        digest.update(part)
    if isinstance(model, SavedModelFolder):
        folder = Path(model.source)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _parts(graph_def: Any) -> Iterator[bytes]:
    for part in (graph_def.versions, *graph_def.library.function, *graph_def.library.gradient, *graph_def.node):
        yield part.SerializeToString(deterministic=True)


def facts_of_samples(source: Any, samples: Samples) -> Facts:
    """The samples, by file where they come from files."""
    paths = npz_paths(source)
    if paths is not None:
        return facts_of_files(paths)
    digest = hashlib.sha256()
    for batch in samples:
        for name, array in sorted(batch.feeds.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else _bytes(array))
    return {"the samples": digest.hexdigest()}


def facts_of_files(paths: Sequence[str]) -> Facts:
    """The samples, by what their files say of their content."""
    return {f"file of samples {number}": text for number, text in enumerate(map(checksums, paths))}


def _bytes(array: Array) -> Any:
    return np.ascontiguousarray(array).view(np.uint8).data if array.size and array.ndim else array.tobytes()

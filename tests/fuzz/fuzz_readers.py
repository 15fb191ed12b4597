"""Damages models of every format until something ends in neither an answer nor a SparsekitError. Run it by hand:

    python tests/fuzz/fuzz_readers.py --seconds 600 --found /tmp/found
    python tests/fuzz/fuzz_readers.py --atheris graph_def -max_total_time=600

The first runs every verb in a process of its own, with little memory and time, so that crashes and hangs are found as
well. The second, guided by coverage, needs the package `atheris` and stops at the first exception.

What was found belongs, made small, into tests/corpus/<format>/, where tests/artefact/test_hostile.py looks at it.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import attrs
from google.protobuf import text_format
from google.protobuf.message import DecodeError

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import samples
from fuzz.mutations import damage, damaged_bytes


@attrs.frozen
class Format:
    """How a kind of model is damaged.

    Attributes:
        sample: the bytes of a sound file.
        damage: of such a file.
        write: puts a file into a folder, together with what it needs; gives the model.
    """

    sample: Callable[[], bytes]
    damage: Callable[[bytes, Random], bytes]
    write: Callable[[Path, bytes], Path]

    def damaged(self, random: Random) -> bytes:
        return self.damage(self.sample(), random)


def _of_message(kind: Callable[[], Any]) -> Callable[[bytes, Random], bytes]:
    """Damage to files that are a message: mostly to its fields."""

    def change(data: bytes, random: Random) -> bytes:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return damaged_bytes(data, random)
        if random.random() < 0.2:
            return damaged_bytes(data, random)
        damage(message, random)
        return bytes(message.SerializePartialToString())

    return change


def _of_text(data: bytes, random: Random) -> bytes:
    """Damage to a .pbtxt: to its lines or its bytes."""
    lines = data.splitlines(keepends=True)
    if random.random() < 0.5 or not lines:
        return damaged_bytes(data, random)
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[at] = random.choice((lines[other], lines[at] * 2, b""))
    return b"".join(lines)


def _file(name: str) -> Callable[[Path, bytes], Path]:
    def write(folder: Path, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _in_a_saved_model(name: str) -> Callable[[Path, bytes], Path]:
    def write(folder: Path, data: bytes) -> Path:
        for other, content in samples.saved_model().items():
            (folder / "model" / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / "model" / other).write_bytes(data if other == name else content)
        return folder / "model"

    return write


def _text_sample() -> bytes:
    return text_format.MessageToString(_graph_def().FromString(samples.graph_def())).encode()


def _graph_def() -> Any:
    from tensorflow.core.framework import graph_pb2

    return graph_pb2.GraphDef()


def _saved_model() -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel()


def _onnx() -> Any:
    import onnx

    return onnx.ModelProto()


_PB, _INDEX = "saved_model.pb", "variables/variables.index"
FORMATS: Mapping[str, Format] = {
    "graph_def": Format(samples.graph_def, _of_message(_graph_def), _file("model.pb")),
    "pbtxt": Format(_text_sample, _of_text, _file("model.pbtxt")),
    "saved_model": Format(lambda: samples.saved_model()[_PB], _of_message(_saved_model), _in_a_saved_model(_PB)),
    "variables": Format(lambda: samples.saved_model()[_INDEX], damaged_bytes, _in_a_saved_model(_INDEX)),
    # Most of its bytes are offsets, lengths and indices.
    "tflite": Format(samples.tflite, damaged_bytes, _file("model.tflite")),
    "onnx": Format(samples.onnx, _of_message(_onnx), _file("model.onnx")),
}


def search(seconds: float, found: Path, formats: list[str], seed: int) -> int:
    """Damage models for so long; keep those that end badly, one for every place that an exception came from."""
    import shutil

    from isolated import Isolation

    ends: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in formats}
    known: set[str] = set()
    end = time.monotonic() + seconds
    with Isolation() as isolation:
        while time.monotonic() < end:
            seed += 1
            for name in formats:
                with tempfile.TemporaryDirectory() as folder:
                    model = FORMATS[name].write(Path(folder), FORMATS[name].damaged(Random(seed)))
                    outcome = isolation.run(model, ["every"], seconds=20)["every"]
                    ends[name][outcome.end] += 1
                    place = f"{outcome.end} {outcome.text.partition(':')[0]} {outcome.text.split(':')[-1][:30]}"
                    if outcome.fine or place in known:
                        continue
                    known.add(place)
                    print(f"{name}, seed {seed}: {outcome.end}: {outcome.text[:300]}", flush=True)
                    target = found / name / f"{hashlib.sha1(place.encode()).hexdigest()[:10]}-{model.name}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if model.is_dir() else shutil.copy)(model, target)  # type: ignore[operator]
    for name, counts in ends.items():
        print(f"{name}: {dict(counts)}")
    return len(known)


def guided(name: str, options: list[str]) -> None:
    """Let atheris choose what to damage further, by what it reaches in this project's code."""
    import atheris

    with atheris.instrument_imports(include=["sparsekit", "sparsekit_ops"]):
        import sparsekit
        import sparsekit.artefact.onnx_model
        import sparsekit.artefact.tflite
        from sparsekit.plugins import default_registry

        default_registry()
    kind = FORMATS[name]
    sample = kind.sample()

    def once(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = kind.write(Path(folder), data)
            for verb in (sparsekit.report, sparsekit.verify, sparsekit.prune, sparsekit.strip):
                try:
                    verb(model)
                except sparsekit.SparsekitError:
                    continue

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        return kind.damage(data if len(data) > 8 else sample, Random(seed))[:most]

    atheris.Setup([sys.argv[0], "-max_len=1000000", "-len_control=0", *options], once, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--found", type=Path, default=Path("found"), help="where to keep what was found")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", choices=FORMATS, help="let atheris search; further options are its own")
    arguments, rest = parser.parse_known_args()
    if arguments.atheris:
        guided(arguments.atheris, rest)
    else:
        sys.exit(1 if search(arguments.seconds, arguments.found, arguments.formats, arguments.seed) else 0)

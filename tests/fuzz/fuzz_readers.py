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

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import samples
from fuzz.mutations import damage, damaged_bytes


def _message(kind: Callable[[], Any], data: Callable[[], bytes], name: str) -> Callable[[Path, Random], Path]:
    """Writes a damaged file whose bytes are a message."""

    def write(folder: Path, random: Random) -> Path:
        content = data()
        if random.random() < 0.8:
            message = kind()
            message.ParseFromString(content)
            damage(message, random)
            content = message.SerializePartialToString()
        else:
            content = damaged_bytes(content, random)
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _text(folder: Path, random: Random) -> Path:
    """A damaged .pbtxt."""
    from google.protobuf import text_format
    from tensorflow.core.framework import graph_pb2

    graph_def = graph_pb2.GraphDef.FromString(samples.graph_def())
    if random.random() < 0.5:
        damage(graph_def, random)
    text = text_format.MessageToString(graph_def).encode()
    (folder / "model.pbtxt").write_bytes(damaged_bytes(text, random) if random.random() < 0.7 else text)
    return folder / "model.pbtxt"


def _saved_model(folder: Path, random: Random) -> Path:
    """A SavedModel with one damaged file."""
    from tensorflow.core.protobuf import saved_model_pb2

    files = dict(samples.saved_model())
    if random.random() < 0.7:
        proto = saved_model_pb2.SavedModel.FromString(files["saved_model.pb"])
        damage(proto, random)
        files["saved_model.pb"] = proto.SerializePartialToString()
    else:
        name = random.choice([name for name in files if name.startswith("variables")])
        files[name] = damaged_bytes(files[name], random)
    for name, data in files.items():
        (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "model" / name).write_bytes(data)
    return folder / "model"


def _flatbuffer(folder: Path, random: Random) -> Path:
    """A damaged .tflite: most of its bytes are offsets, lengths and indices."""
    (folder / "model.tflite").write_bytes(damaged_bytes(samples.tflite(), random))
    return folder / "model.tflite"


def _graph_def_message() -> Any:
    from tensorflow.core.framework import graph_pb2

    return graph_pb2.GraphDef()


def _onnx_message() -> Any:
    import onnx

    return onnx.ModelProto()


FORMATS: Mapping[str, Callable[[Path, Random], Path]] = {
    "graph_def": _message(_graph_def_message, samples.graph_def, "model.pb"),
    "pbtxt": _text,
    "saved_model": _saved_model,
    "tflite": _flatbuffer,
    "onnx": _message(_onnx_message, samples.onnx, "model.onnx"),
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
                    model = FORMATS[name](Path(folder), Random(seed))
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
    """Let atheris choose the seeds of the damage, by what they reach in this project's code."""
    import atheris

    with atheris.instrument_imports(include=["sparsekit", "sparsekit_ops"]):
        import sparsekit
        import sparsekit.artefact.onnx_model
        import sparsekit.artefact.tflite

    def once(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = FORMATS[name](Path(folder), Random(data))
            for verb in (sparsekit.report, sparsekit.verify, sparsekit.prune, sparsekit.strip):
                try:
                    verb(model)
                except sparsekit.SparsekitError:
                    continue

    atheris.Setup([sys.argv[0], *options], once)
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

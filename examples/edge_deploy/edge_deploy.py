"""From a trained model to an NPU's compiler: prune to 2:4, quantize to int8, verify the file, ask Arm's Vela.

A small network for handwritten digits goes this way three times: dense; pruned along its input channels, as sparsekit
does; and, to show that the axis matters, pruned just as much along its output channels. What Vela prints are Arm's
estimates for an Ethos-U NPU; nothing here runs on one.
"""

from __future__ import annotations

import argparse
import csv
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import sparsekit
from sparsekit.pattern import keep_mask
from sparsekit.table import text_table

DENSE, PRUNED, WRONG_AXIS = "dense", "2:4", "2:4 along the output channels"


class Digits(NamedTuple):
    """scikit-learn's digits, [images, 8, 8, 1] in 0..1, split into 1,200 for training and 597 for testing."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Estimate(NamedTuple):
    """What Vela expects of one inference on the NPU.

    Attributes:
        multiply_adds: those the NPU carries out.
        cycles: all in all.
        source: whose estimate it is, and for what.
    """

    multiply_adds: int
    cycles: int
    source: str


class Deployed(NamedTuple):
    """One .tflite file: how many of the test images it gets right, its verification, and Vela's estimate."""

    network: str
    path: Path
    accuracy: float
    verification: sparsekit.Verification
    estimate: Estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("edge_output"), help="where the models go")
    parser.add_argument("--accelerator", default="ethos-u85-256", help="the NPU, as Vela calls it")
    parser.add_argument("--vela", help="the program; default: beside this Python, or on PATH")
    arguments = parser.parse_args()
    networks = deploy(arguments.output, arguments.accelerator, arguments.vela or find_vela())
    print(verdicts(sparsekit.plan(arguments.output / "dense", target=arguments.accelerator)))
    print(table(networks))
    page = sparsekit.report(arguments.output / "dense", target=arguments.accelerator, estimates=estimates(networks))
    print(f"The report: {page.save(arguments.output / 'report.html')}")


def deploy(output: Path, accelerator: str, vela: str, seed: int = 0) -> list[Deployed]:
    """Train the network, and take its three variants through quantization to Vela."""
    data = load_digits(seed)
    model = trained(data, seed)
    dense = export(model, output / "dense")

    # Masks chosen from the weights, zeros written in their place. Where accuracy counts, retrain.
    pruned = sparsekit.prune(dense, target=accelerator).save(output / "pruned")

    prune_along_the_outputs(model)
    wrong = export(model, output / "wrong_axis")

    networks = []
    for network, saved_model in ((DENSE, dense), (PRUNED, Path(pruned)), (WRONG_AXIS, wrong)):
        tflite = saved_model.with_suffix(".tflite")
        tflite.write_bytes(quantized(saved_model, data.train_images))
        verification, asked = sparsekit.verify(tflite), estimate(tflite, accelerator, vela)
        networks.append(Deployed(network, tflite, accuracy(tflite, data), verification, asked))
    return networks


def load_digits(seed: int) -> Digits:
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), train_size=1200, random_state=seed, stratify=labels
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def trained(data: Digits, seed: int) -> keras.Model:
    """Convolutions, a transposed convolution and dense layers. The first has one input channel: it stays dense."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1), batch_size=1),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="first"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="conv"),
            layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu", name="up"),
            layers.MaxPooling2D(4),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="dense"),
            layers.Dense(10, name="logits"),
        ]
    )
    training = keras.Sequential([layers.Input((8, 8, 1)), *model.layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    training.compile(keras.optimizers.Adam(2e-3), loss)
    training.fit(data.train_images, data.train_labels, batch_size=50, epochs=10, verbose=0)
    return model


def export(model: keras.Model, folder: Path) -> Path:
    """Write a SavedModel for one image at a time, as Vela wants it."""
    signature = keras.InputSpec(shape=(1, 8, 8, 1), dtype="float32")
    model.export(folder, verbose=False, input_signature=[signature])
    return folder


def prune_along_the_outputs(model: keras.Model) -> None:
    """As many zeros (but for the last two logits), in groups of output channels: of no use to the hardware."""
    for name, outputs in (("conv", 3), ("up", 2), ("dense", 1), ("logits", 1)):
        kernel = model.get_layer(name).kernel
        weight = keras.ops.convert_to_numpy(kernel)
        kernel.assign(weight * keep_mask(np.abs(weight), outputs))


def quantized(saved_model: Path, images: np.ndarray) -> bytes:
    """An int8 .tflite file, its activations scaled to what representative images give."""

    def representative() -> Iterator[list[np.ndarray]]:
        yield from ([image[None]] for image in images[:200])

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def accuracy(tflite: Path, data: Digits) -> float:
    """The share of test images that the quantized network gets right, on the CPU."""
    interpreter = tf.lite.Interpreter(str(tflite))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = given["quantization"]
    images = np.clip(np.round(data.test_images / scale) + zero_point, -128, 127).astype(np.int8)
    right = 0
    for image, label in zip(images, data.test_labels, strict=True):
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(result["index"]).argmax() == label)
    return right / len(data.test_labels)


def find_vela() -> str:
    """Vela, beside this Python or on PATH."""
    beside = Path(sys.executable).with_name("vela")
    found = str(beside) if beside.is_file() else shutil.which("vela")
    if found is None:
        raise SystemExit("Arm's compiler Vela was not found: pip install 'ethos-u-vela==5.2.*', or give --vela.")
    return found


def estimate(tflite: Path, accelerator: str, vela: str) -> Estimate:
    """Compile the file for the NPU, and read Vela's estimate from the summary that it writes.

    Raises:
        SystemExit: Vela refuses the file.
    """
    folder = tflite.with_name(f"{tflite.stem}_vela")
    shutil.rmtree(folder, ignore_errors=True)
    command = [vela, str(tflite), "--accelerator-config", accelerator, "--output-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    (summary,) = folder.glob("*_summary_*.csv")
    with summary.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    source = f"Arm's estimate by Vela {version_of(vela)} for {accelerator}"
    return Estimate(int(float(row["nn_macs"])), int(float(row["cycles_total"])), source)


@functools.cache
def version_of(vela: str) -> str:
    return subprocess.run([vela, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def estimates(networks: list[Deployed]) -> list[sparsekit.Estimate]:
    """Vela's figures as a report shows them: as Arm's, not ours."""
    dense, pruned = networks[0].estimate, networks[1].estimate
    return [
        sparsekit.Estimate(dense.source, quantity, float(getattr(dense, field)), float(getattr(pruned, field)))
        for quantity, field in (("multiply-adds", "multiply_adds"), ("cycles", "cycles"))
    ]


def verdicts(plan: sparsekit.Plan) -> str:
    """What the target profile expects, layer by layer, before any compiler is asked."""
    lines = [f"{layer.name}: {layer.verdict or layer.reason}" for layer in plan.decisions]
    return "\n".join([plan.summary(), *(f"  {line.rpartition('StatefulPartitionedCall/')[2]}" for line in lines), ""])


def table(networks: list[Deployed]) -> str:
    """One row a network, with ratios to the first one."""
    dense = networks[0].estimate
    rows = [
        (
            network.network,
            f"{100 * network.accuracy:.1f}",
            network.verification.status,
            f"{network.estimate.multiply_adds:,}",
            f"{network.estimate.multiply_adds / dense.multiply_adds:.2f}",
            f"{network.estimate.cycles:,}",
            f"{network.estimate.cycles / dense.cycles:.2f}",
        )
        for network in networks
    ]
    header = ("network (int8)", "accuracy %", "verification", "multiply-adds", "to dense", "cycles", "to dense")
    return f"{text_table(header, rows)}Multiply-adds and cycles: {dense.source}, not a measurement on a device."


if __name__ == "__main__":
    main()

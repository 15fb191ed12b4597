"""Runs a model at rest on sample inputs, pruned weights in place of dense ones, and tells what flows where."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
import tensorflow as tf

from sparsekit.artefact.model import Model
from sparsekit.calibration.inlining import inlined, tensor_name
from sparsekit.calibration.live_model import DATA_OPS
from sparsekit.calibration.samples import ModelInput
from sparsekit.calibration.slots import fed_name, sum_name, with_slots
from sparsekit.errors import CalibrationError, ModelError
from sparsekit.graph.forward import OneRun
from sparsekit.graph.node import Edge, FunctionView, Node
from sparsekit.graph.order import in_v1_control_flow

Array: TypeAlias = npt.NDArray[Any]
_v1 = tf.compat.v1


class Network:
    """A model in a session of its own. Use `opened`.

    Attributes:
        inputs: what a run must be fed with.
        outputs: the operations that give the model's results.
        results: those of the results that are floats. An operation stands for its first output, the call of a function
            for all that it returns.
    """

    def __init__(
        self,
        model: Model,
        session: Any,
        nested: Collection[str],
        outputs: Sequence[str] | None,
        slots: Collection[str] = (),
    ) -> None:
        self._session = session
        self._nested = nested
        self._sums = {f"{name}:0": sum_name(name) for name in slots}
        self._weights: dict[str, Array] = {}
        self.outputs: tuple[str, ...] = tuple(outputs or model.main_outputs or _unread(model))
        self._run_of = OneRun(model.view, self.outputs)
        self._tensors = {
            name: tensor
            for name, tensor in model.inputs.items()
            if (node := model.view.node(tensor.partition(":")[0])) is not None and self._run_of.computes(node)
        }
        if not self._tensors:
            raise _without_inputs(model, self._run_of)
        self.results = tuple(self._float_results(model))
        self.inputs = tuple(_model_input(name, session.graph, tensor) for name, tensor in self._tensors.items())

    def computes(self, node: Node) -> bool:
        """Whether a run of the model computes the node."""
        return self._run_of.computes(node)

    def can_fetch(self, node: Node) -> bool:
        """Whether a session can fetch and feed what the node computes: not in the body of a loop or cond."""
        view = node.view
        while isinstance(view, FunctionView):
            if view.role != "f":
                return False
            view = view.call.view
        return node.path not in self._nested

    def set(self, edges: Iterable[Edge], value: Array) -> None:
        """Let another value flow along ``edges``, which read a weight or a bias, from now on."""
        for edge in edges:
            if self.can_fetch(edge.node):
                self._weights[tensor_name(edge)] = value

    def unset(self, edges: Iterable[Edge]) -> None:
        """Let the stored value flow along ``edges`` again."""
        for edge in edges:
            self._weights.pop(tensor_name(edge), None)

    def can_add(self, node: Node) -> bool:
        """Whether something can be added to the output of the node: it was opened with a slot there."""
        return f"{node.path}:0" in self._sums

    def add(self, node: Node, value: Array) -> None:
        """Add a value to the output of a node, for all who read it, from now on."""
        self._weights[fed_name(node.path)] = value

    def run(self, edges: Sequence[Edge], batch: Mapping[str, Array], *, dense: bool = False) -> list[Array]:
        """What flows along ``edges`` for one batch of inputs, given by their names.

        Args:
            edges: to be fetched.
            batch: the inputs.
            dense: with the weights as they are stored, whatever was set.

        Raises:
            ModelError: TensorFlow cannot run the model on it.
        """
        names = map(tensor_name, edges)
        return self._run([self._sums.get(name, name) for name in names], batch, dense)

    def run_outputs(self, batch: Mapping[str, Array], *, dense: bool = False) -> list[Array]:
        """The model's results for one batch of inputs."""
        return self._run([f"{name}:0" for name in self.outputs], batch, dense)

    def _float_results(self, model: Model) -> Iterator[Edge]:
        for name in self.outputs:
            node = model.view.node(name)
            tensors = self._session.graph.get_operation_by_name(name).outputs
            if node is None or not self.can_fetch(node):
                continue
            for index, tensor in enumerate(tensors if model.view.bodies(node) else tensors[:1]):
                if tensor.dtype.is_floating:
                    yield Edge(node, index)

    def _run(self, fetches: list[str], batch: Mapping[str, Array], dense: bool) -> list[Array]:
        feeds = {self._tensors[name]: value for name, value in batch.items()}
        try:
            return self._session.run(fetches, feeds if dense else {**self._weights, **feeds})
        except (tf.errors.OpError, ValueError, TypeError) as error:
            message = " ".join(str(error).split())[:400]
            raise ModelError(
                f"cannot be run on the calibration data ({message})", where="calibration", expected="inputs that fit"
            ) from error


@contextlib.contextmanager
def opened(model: Model, outputs: Sequence[str] | None = None, slots: Iterable[Node] = ()) -> Iterator[Network]:
    """A session with the model in it.

    Args:
        model: the model.
        outputs: the operations whose results a run asks for; None: those of the model.
        slots: nodes to whose outputs something may be added; those in loops and conds get no slot.

    Raises:
        CalibrationError: it has no inputs.
        ModelError: TensorFlow cannot load the model.
    """
    # Not entered: samples are read meanwhile, and their own TensorFlow code must not land in this graph.
    graph_def = inlined(model.view)
    nested = in_v1_control_flow({node.name: node for node in graph_def.node})
    with_slot = with_slots(graph_def, {node.path for node in slots} - nested)
    session = _v1.Session(graph=tf.Graph(), config=_config())
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(session):
        try:
            model.load(session, graph_def, Path(folder))
        except (tf.errors.OpError, ValueError, OSError) as error:
            message = str(error).partition("\n")[0]
            raise ModelError(f"TensorFlow cannot load it ({message})", where=model.source) from error
        yield Network(model, session, nested, outputs, with_slot)


def _config() -> Any:
    # No rewriting: what is fetched must be what the graph says, and constants that are fed must not be folded.
    config = _v1.ConfigProto(allow_soft_placement=True)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    return config


def _without_inputs(model: Model, run: OneRun) -> CalibrationError:
    sources = [
        f"'{node.name}' ({node.op})" for node in model.view.nodes() if node.op in DATA_OPS and run.computes(node)
    ]
    return CalibrationError(
        f"gets its data from {', '.join(sources[:5])}" if sources else "has no inputs",
        where=model.source,
        expected="a model with inputs that samples can be fed to",
        hint=f"Export it with a placeholder instead{' of these' * bool(sources[1:])}, or prune the live graph with a "
        "session: there samples may feed what an iterator's step gives."
        if sources
        else "Export it with placeholders.",
    )


def _model_input(name: str, graph: Any, tensor_name: str) -> ModelInput:
    tensor = graph.get_tensor_by_name(tensor_name)
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return ModelInput(
        name,
        object if tensor.dtype == tf.string else tensor.dtype.as_numpy_dtype,
        shape,
        required=tensor.op.type != "PlaceholderWithDefault",
    )


def _unread(model: Model) -> list[str]:
    """The results of a graph that does not name them: the ops that nobody reads, but for inputs, which freezers leave
    behind."""
    inputs = {tensor.partition(":")[0] for tensor in model.inputs.values()}
    unread = (node for node in model.view.nodes() if not model.view.readers(node) and node.output_rank != 0)
    return [node.name for node in unread if node.name not in inputs]

"""How a mask lives in a live graph: its state, when it is chosen, and the gradient that keeps the books.

Per layer there are two variables, the mask and a count of trained batches; where zeros are to lie in the layer's own
variable, also the count after which they did; and the dropped values, if the mask is chosen again. The forward pass
only reads: where a mask is due it chooses from the weights at hand, elsewhere it uses the stored one. Only the gradient
writes, and a projected train op (which then chooses, too: `sparsekit.live.refreshing`), so a forward pass without
training (an evaluation, a freeze) changes nothing, and a batch counts once however many losses it has.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import attrs
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.ops import gen_control_flow_ops, ref_variable, resource_variable_ops

from sparsekit.config import Masking
from sparsekit.criterion import Criterion
from sparsekit.graph.edit import pristine_scope
from sparsekit.graph.trace import MASK_ATTRIBUTE
from sparsekit.live.gradient import (
    BATCH,
    DIRTY,
    DUE,
    GRADIENT,
    IN_PLACE,
    MASK,
    NEXT,
    PROJECTED,
    SHADOW,
    UNTIL_PROJECTED,
    USED,
    ZEROS,
    assign,
    value_of,
    without_dropped,
)
from sparsekit.pattern import Pattern, keep_planes, ordering_key

SCOPE = "sparsekit"
"""Everything inserted for a layer is named ``<layer>/sparsekit/...``."""

_MASKED = "masked"


@attrs.frozen
class MaskDescription:
    """What a masked graph tells about one of its masks; stored on the multiply."""

    pattern: Pattern
    axis: int
    criterion: str
    update_freq: int

    def to_text(self) -> str:
        return json.dumps({**attrs.asdict(self), "pattern": str(self.pattern)}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> MaskDescription:
        """Read what :meth:`to_text` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was written by something else.
        """
        fields = json.loads(text)
        return cls(**{**fields, "pattern": Pattern.parse(fields["pattern"])})


class LayerMask:
    """The state of one layer's mask in ``graph``.

    Args:
        graph: the graph to build in.
        layer: the layer's name; the state is named after it.
        weight: the weight as it is read, of static shape.
        owner: the variable's (or constant's) op; state is placed beside it and is of its kind.
        description: pattern, axis, criterion and update frequency.
        criterion: the criterion that the description names.
        masking: how zeros are kept. All but "forward" need a variable.

    Attributes:
        mask: 1 where a weight stays, of the weight's shape and dtype.
        batch: how many batches were trained, int64.
        zeros: the count of them after which the variable held zeros, -1 before it did; None with "forward". Where
            masked gradients keep them, 0 once an update was seen to leave them, and a number below -1 until then.
        shadow: the dropped values, 0 before the variable held zeros; None where it never does, or the mask is chosen
            once.
    """

    def __init__(
        self,
        graph: tf.Graph,
        layer: str,
        weight: tf.Tensor,
        owner: tf.Operation,
        description: MaskDescription,
        criterion: Criterion,
        masking: Masking = "forward",
    ) -> None:
        self.graph = graph
        self.layer = layer
        self.scope = f"{layer}/{SCOPE}"
        self.owner = owner
        self.description = description
        self.criterion = criterion
        self.masking = masking
        self._masked: dict[str, tf.Tensor] = {}
        with self.beside():
            shape, dtype = weight.shape.as_list(), weight.dtype.base_dtype
            by_reference = owner.type in ("Variable", "VariableV2")
            # A fill, never a constant: a MetaGraph must not grow with the weights.
            self.mask = state_variable(by_reference, MASK, dtype, lambda: tf.fill(shape, tf.ones([], dtype)))
            self.batch = state_variable(by_reference, BATCH, tf.int64, lambda: tf.zeros([], tf.int64))
            # Only this reads the count: a read of a ref variable is the variable's own buffer, which the gradient
            # overwrites; whatever else depends on the count depends on this fresh number. Computed here, once, so that
            # every gradient of a batch stores the same one.
            following = tf.add(self.batch.value(), 1, name=NEXT)
            period = description.update_freq
            chosen_after_updates = masking != "forward" and period > 0
            name = "counted" if chosen_after_updates else DUE
            due = tf.equal(following % period if period else following, 1 % period if period else 1, name=name)
            self.zeros = self.shadow = None
            if masking != "forward":
                never = functools.partial(tf.fill, [], tf.constant(-1, tf.int64))
                self.zeros = state_variable(by_reference, ZEROS, tf.int64, never)
                was_written = self.zeros.value() + 1
            if chosen_after_updates:
                self.shadow = state_variable(by_reference, SHADOW, dtype, lambda: tf.fill(shape, tf.zeros([], dtype)))
                # Whoever writes zeros also chooses from then on.
                due = tf.logical_and(due, was_written < 1, name=DUE)
            # Switch and Merge instead of tf.cond: the same graph under either control flow, without functions, and
            # choosing costs nothing where it is not due.
            stored, _ = gen_control_flow_ops.switch(self.mask.value(), due)
            _, weight_when_due = gen_control_flow_ops.switch(weight, due)
            self._used, _ = gen_control_flow_ops.merge([stored, self.chosen(weight_when_due)], name=USED)
            if masking != "forward":
                # After a batch whose update nobody projected the two counts differ.
                dirty = tf.not_equal(was_written, 1 if self._written_once else following)
                self._dirty = tf.logical_or(due, dirty, name=DIRTY)

    @property
    def variables(self) -> tuple[tf.Variable, tf.Variable]:
        """The mask and the batch count."""
        return self.mask, self.batch

    @property
    def more_variables(self) -> tuple[tf.Variable, ...]:
        """What tells whether the variable holds zeros, and the values that are dropped from it; none with "forward"."""
        return tuple(variable for variable in (self.zeros, self.shadow) if variable is not None)

    @property
    def needs_train_op(self) -> bool:
        """Zeros lie in the variable only if something follows every update."""
        return self.zeros is not None and not self._written_once

    @property
    def _written_once(self) -> bool:
        """Masked gradients write the zeros in the first batch, and keep them."""
        return self.masking == "in-place" and self.shadow is None

    def beside(self) -> contextlib.AbstractContextManager[None]:
        """What is built while this lasts belongs to the layer's mask."""
        return pristine_scope(self.graph, self.scope, self.owner)

    def chosen(self, weight: tf.Tensor) -> tf.Tensor:
        """The mask that the criterion chooses for a weight, of its dtype."""
        axis, pattern = self.description.axis, self.description.pattern
        return tf.cast(keep_tensor(self.criterion.score(weight, axis), axis, pattern), weight.dtype, name="chosen")

    def apply(self, weight: tf.Tensor) -> tf.Tensor:
        """The weight without what its mask drops; the same tensor for the same weight tensor."""
        if weight.name not in self._masked:
            with self.beside():
                masked = self._multiplied(weight) if self.masking == "forward" else self._handed_on(weight)
            text = self.description.to_text().encode()
            masked.op._set_attr(MASK_ATTRIBUTE, attr_value_pb2.AttrValue(s=text))
            self._masked[weight.name] = masked
        return self._masked[weight.name]

    def project(self, update: tf.Operation | tf.Tensor) -> tf.Operation:
        """Write zeros where a mask that is chosen once drops, after ``update`` has run, and note down that this was
        done."""
        assert self.zeros is not None
        dependencies = self.graph.control_dependencies
        with self.beside(), dependencies([update]), dependencies([self.write_zeros()]):
            return self.note_zeros(self.batch.read_value(), self.zeros.read_value())

    def note_zeros(self, count: tf.Tensor, zeros: tf.Tensor) -> tf.Operation:
        """Note down that the variable holds zeros, unless no batch was trained: no mask is chosen then.

        Args:
            count, zeros: what the variables of these names hold.
        """
        assert self.zeros is not None
        return assign(self.zeros.op.outputs[0], tf.where(count > 0, count, zeros))

    def write_zeros(self) -> tf.Operation:
        """Where the mask drops, built wherever the caller builds."""
        variable = self.owner.outputs[0]
        # A multiply is what TensorFlow does fastest; where it leaves -0.0, stripping does not.
        return assign(variable, value_of(variable, self.mask.dtype.base_dtype) * self.mask.read_value())

    def _multiplied(self, weight: tf.Tensor) -> tf.Tensor:
        with self.graph.gradient_override_map({"Mul": GRADIENT}):
            return tf.multiply(weight, self._used, name=_MASKED)

    def _handed_on(self, weight: tf.Tensor) -> tf.Tensor:
        """The weight as it is; masked only while its variable holds more than it should. Both cost nothing else."""
        clean, more = gen_control_flow_ops.switch(weight, self._dirty)
        _, used_then = gen_control_flow_ops.switch(self._used, self._dirty)
        effective, _ = gen_control_flow_ops.merge([clean, without_dropped(more, used_then)])
        # Of both, for gradients to go past the switch.
        with self.graph.gradient_override_map({"IdentityN": self._gradient}):
            return tf.identity_n([weight, effective], name=_MASKED)[1]

    @property
    def _gradient(self) -> str:
        if self._written_once:
            return IN_PLACE
        return UNTIL_PROJECTED if self.masking == "project" and self.shadow is not None else PROJECTED


def keep_tensor(score: tf.Tensor, axis: int, pattern: Pattern) -> tf.Tensor:
    """:func:`sparsekit.pattern.keep_mask` inside a graph: bool, of the static shape of ``score``."""
    shape = score.shape.as_list()
    outer, length, inner = shape[:axis], shape[axis], shape[axis + 1 :]
    tail = length % pattern.m
    # The score is split, not its key: TensorFlow splits no integers on a GPU.
    whole, rest = tf.split(score, [length - tail, tail], axis) if tail else (score, None)
    kept = []
    if length > tail:
        # Four axes at most, whatever the rank: TensorFlow's kernels are made for few.
        rows, columns = math.prod(outer), math.prod(inner)
        planes = tf.unstack(tf.reshape(ordering_key(whole), [rows, length // pattern.m, pattern.m, columns]), axis=2)
        keep = tf.stack(keep_planes(planes, pattern.n), axis=2)
        kept.append(tf.reshape(keep, [*outer, length - tail, *inner]))
    if rest is not None:
        planes = tf.unstack(ordering_key(rest), axis=axis)
        kept.append(tf.stack(keep_planes(planes, pattern.n), axis=axis))
    return kept[0] if len(kept) == 1 else tf.concat(kept, axis)


def state_variable(by_reference: bool, name: str, dtype: tf.DType, initial_value: Callable[[], tf.Tensor]) -> Any:
    """A non-trainable variable of the given kind, built past every creator, getter and scope of the caller."""
    kind = ref_variable.RefVariable if by_reference else resource_variable_ops.ResourceVariable
    return kind(
        initial_value=initial_value,
        trainable=False,
        collections=[tf.compat.v1.GraphKeys.GLOBAL_VARIABLES],
        name=name,
        dtype=dtype,
    )

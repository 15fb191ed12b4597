"""Masks that are chosen again where zeros lie in the variable: by the train op, after its update.

At all times the weight with nothing dropped is the variable where the mask keeps, and the shadow where it drops; before
zeros were written for the first time it is the variable alone. A choice is made from that, of values as they are after
the update, which is what the forward pass of the next batch would have chosen from.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.ops import gen_control_flow_ops

from sparsekit.live.gradient import assign, value_of, where_due, without_dropped
from sparsekit.live.mask import LayerMask


def refreshed(
    mask: LayerMask, update: tf.Operation | tf.Tensor, slots: Sequence[tf.Tensor], every_step: bool
) -> tf.Operation:
    """Choose the mask again if it is due, after ``update`` has run, and leave zeros where it drops.

    In other steps nothing is done that costs, unless the masking or ``every_step`` asks for it.

    Args:
        mask: of a layer with a shadow.
        update: the train op, one that writes the weight.
        slots: variables (references or resources) of the weight's shape that move a weight without a gradient; they
            get zeros where the mask drops.
        every_step: something else may move dropped weights: write all zeros after every step.
    """
    period = mask.description.update_freq
    assert mask.zeros is not None
    with mask.beside(), mask.graph.control_dependencies([update]):
        count, zeros = mask.batch.read_value(), mask.zeros.read_value()
        never_written = zeros < 0
        # Not where the layer got no gradients since.
        trained = tf.logical_and(count > 0, tf.not_equal(count, zeros))
        before = tf.where(never_written, count - 1, zeros)
        due = tf.logical_and(trained, count // period > before // period)
        rewrite = tf.logical_or(due, tf.logical_and(trained, never_written))
        # Without gradients, too: it may write sums of earlier ones, or what no gradient of the layer tells.
        write = tf.logical_not(tf.logical_or(rewrite, never_written))
        if mask.masking == "in-place" and not every_step:
            # Masked gradients keep the zeros of a batch that found them.
            write = tf.logical_and(write, tf.not_equal(zeros, count - 1))
        # Not the predicate itself: TensorFlow would fold that switch, and then never come to an end.
        rewritten = where_due(rewrite, count, functools.partial(_rewrite, mask, slots, due, never_written))
        written = where_due(write, count, functools.partial(_write, mask, slots if every_step else ()))
        with mask.graph.control_dependencies([rewritten, written]):
            return mask.note_zeros(count, zeros)


def _rewrite(
    mask: LayerMask, slots: Sequence[tf.Tensor], due: tf.Tensor, never_written: tf.Tensor, now: tf.Tensor
) -> tf.Operation:
    """Split the weight between variable and shadow, by a new mask if it is due."""
    dtype = mask.mask.dtype.base_dtype
    assert mask.shadow is not None
    weight, stored, shadow = mask.owner.outputs[0], mask.mask.op.outputs[0], mask.shadow.op.outputs[0]
    with _only_if(mask, now):
        old = value_of(stored, dtype)
        in_variable = tf.logical_or(tf.not_equal(old, tf.zeros([], dtype)), never_written)
        everything = tf.where(in_variable, value_of(weight, dtype), value_of(shadow, dtype))
        old, _ = gen_control_flow_ops.switch(old, due)
        _, all_when_due = gen_control_flow_ops.switch(everything, due)
        used, _ = gen_control_flow_ops.merge([old, mask.chosen(all_when_due)])
        # All values are computed before the first is written: reads of ref variables are their own buffers.
        kept, dropped = without_dropped(everything, used), without_dropped(everything, 1 - used)
        with mask.graph.control_dependencies([kept, dropped]):
            writes = [assign(stored, used), assign(shadow, dropped), assign(weight, kept)]
        return tf.group(*writes, *(_take_dropped(slot, used) for slot in slots))


def _write(mask: LayerMask, slots: Sequence[tf.Tensor], now: tf.Tensor) -> tf.Operation:
    with _only_if(mask, now):
        used = value_of(mask.mask.op.outputs[0], mask.mask.dtype.base_dtype)
        return tf.group(mask.write_zeros(), *(_take_dropped(slot, used) for slot in slots))


def _only_if(mask: LayerMask, now: tf.Tensor) -> contextlib.AbstractContextManager[None]:
    """What is built while this lasts runs only where ``now``, one side of a switch, exists."""
    # To wait for the switch itself would be to run on either side.
    gate: contextlib.AbstractContextManager[None] = mask.graph.control_dependencies([tf.identity(now)])
    return gate


def _take_dropped(slot: tf.Tensor, mask: tf.Tensor) -> tf.Operation:
    return assign(slot, without_dropped(value_of(slot, mask.dtype.base_dtype), mask))

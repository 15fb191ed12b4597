"""What pruning gives back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sparsekit.artefact.model import FrozenGraph, Model
from sparsekit.errors import GraphError
from sparsekit.planning import Plan
from sparsekit.table import text_table

if TYPE_CHECKING:
    import tensorflow as tf

    from sparsekit.calibration.start import CalibratedStart
    from sparsekit.reporting.facts import Report


def _shown(title: str, form: str = "") -> dict[str, str]:
    """How a field is told to people: the head of its column, and the format of its numbers."""
    return {"title": title, "form": form}


@attrs.frozen
class LayerAccount:
    """What calibration did to one layer.

    Attributes:
        name: the layer.
        criterion: what chose its weights.
        error_before: of the weights that magnitude alone keeps, on the calibration inputs: the share of the outputs'
            energy that is lost. None where the layer was not calibrated, or its criterion is another one that goes by
            weights alone.
        error_after: the same of the weights that were written.
        error_mask: the same of the weights that were kept, as they were before they were repaired (with
            "scale-shift": before that repair).
        held_back: the errors are of samples that the repairs have not seen: those of each half of the samples after a
            fit to the other half (of up to 32 columns, with the mask that was written). False: of the samples that were
            fitted.
        retained: the share of sum |w| of the weights that were kept, as they were.
        damping: the ridge that was used, 0 where none was.
        iterations: of the solver.
        seconds: of CPU time; the collection of its inputs included, if it was not that of other layers too.
        shifted: its mean output was restored in the bias that follows.
        bias_added: that bias was not there before.
        scaled: the standard deviation of its outputs was restored, too.
        note: what stood in the way of something, "" if nothing did.
    """

    name: str = attrs.field(metadata=_shown("layer"))
    criterion: str = attrs.field(metadata=_shown("chosen by"))
    error_before: float | None = attrs.field(default=None, metadata=_shown("error by magnitude", ".3%"))
    error_mask: float | None = attrs.field(default=None, metadata=_shown("by its mask alone", ".3%"))
    error_after: float | None = attrs.field(default=None, metadata=_shown("error", ".3%"))
    held_back: bool = attrs.field(default=False, metadata=_shown("of unseen samples"))
    retained: float | None = attrs.field(default=None, metadata=_shown("retained |w|", ".1%"))
    damping: float = attrs.field(default=0.0, metadata=_shown("damping", "g"))
    iterations: int = attrs.field(default=0, metadata=_shown("steps", "d"))
    seconds: float = attrs.field(default=0.0, metadata=_shown("CPU s", ".1f"))
    shifted: bool = attrs.field(default=False, metadata=_shown("bias moved"))
    bias_added: bool = attrs.field(default=False, metadata=_shown("bias added"))
    scaled: bool = attrs.field(default=False, metadata=_shown("scaled"))
    note: str = ""

    def noted(self, note: str) -> LayerAccount:
        """The account with one more note; "" is none."""
        return self if note in self.note else attrs.evolve(self, note=f"{self.note}; {note}" if self.note else note)

    def measured(self, error: float) -> LayerAccount:
        """The account with the error of the weights that were kept, as they were measured in the running model."""
        by_magnitude = error if self.criterion == "magnitude" else None
        held_back = not self.damping
        return attrs.evolve(
            self, error_before=by_magnitude, error_mask=error, error_after=error, held_back=held_back, shifted=False
        )

    @property
    def worse(self) -> bool:
        """Its outputs lose more than with its mask alone, or with the weights that magnitude keeps."""
        others = [error for error in (self.error_before, self.error_mask) if error is not None]
        return self.error_after is not None and bool(others) and self.error_after > min(others) * (1 + 1e-6)

    def told(self) -> dict[str, str]:
        """Every field for people, by its title; "-" for what is not known."""
        return {title_of(field): told(field, getattr(self, field.name)) for field in attrs.fields(LayerAccount)}


@attrs.frozen
class NormalizationAccount:
    """What the repair "batch-norm" did to one batch normalization.

    Attributes:
        name: the op that normalizes.
        updated: its mean and its variance were measured anew and written.
        note: why not, "" if they were.
    """

    name: str
    updated: bool
    note: str = ""


def title_of(field: attrs.Attribute[Any]) -> str:
    """What people call a field of an account."""
    return str(field.metadata.get("title", field.name.replace("_", " ")))


def told(field: attrs.Attribute[Any], value: Any) -> str:
    """A field of an account as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    form = field.metadata.get("form") or (".3%" if "error" in field.name else ".4g")
    return format(value, form) if isinstance(value, (int, float)) else str(value)


def worse_in_words(accounts: Sequence[LayerAccount]) -> str:
    """Which layers calibration did not help, and the way out; "" if there are none."""
    worse = [account.name for account in accounts if account.worse]
    if not worse:
        return ""
    names = ", ".join(f'"{name}"' for name in worse)
    return (
        f"Worse than magnitude or than their mask alone: {', '.join(worse)}. To leave them dense: "
        f"skip_layers = [{names}]; to keep the mask alone: an override with repair = [], or guard = true."
    )


@attrs.frozen(eq=False)
class PruneResult:
    """What :func:`sparsekit.prune` did.

    A live graph was edited in place. A session that ran anything of it before does not see the edit: open a new one.

    Attributes:
        plan: every layer with its decision.
        variables: of a live graph, the new variables: a mask and a batch count per pruned layer; then, of each layer
            whose variable is to hold zeros (masking "in-place" and "project"), the batch count after which it did, and
            the dropped values where masks are chosen again.
        initializer: of a live graph, an operation that initializes ``variables`` alone, for a session whose other
            variables were restored or initialized in another way.
        model: of a model at rest, the pruned one.
        accounts: with calibration, what it did to every layer, in the order in which they were treated.
        normalizations: with the repair "batch-norm", what it did to every batch normalization behind pruned layers.
        calibrated: of a live graph, with calibration, what it chose; :meth:`start` loads it.
    """

    plan: Plan
    variables: tuple[tf.Variable, ...] = ()
    initializer: tf.Operation | None = attrs.field(default=None, repr=False)
    model: Model | None = attrs.field(default=None, repr=False)
    accounts: tuple[LayerAccount, ...] = attrs.field(default=(), repr=False)
    normalizations: tuple[NormalizationAccount, ...] = attrs.field(default=(), repr=False)
    calibrated: CalibratedStart | None = attrs.field(default=None, repr=False)
    _reporting: Callable[[], Report] | None = attrs.field(default=None, repr=False)
    _projection: Callable[[Any], Any] | None = attrs.field(default=None, repr=False)

    def start(self, session: Any) -> None:
        """Let a session of a live graph start from what calibration chose: weights, biases, masks and batch counts.

        Call it in a session that was opened after :func:`sparsekit.prune`, after its variables were initialized and the
        dense checkpoint was restored. Nothing is added to the graph, which may be finalized.

        Args:
            session: a ``tf.compat.v1.Session``, or a wrapper of one.

        Raises:
            GraphError: nothing was calibrated, or it is a session of another graph, is closed, is the one that was
                calibrated (it does not see the masks), or was trained already (a start would undo that).
        """
        if self.calibrated is None:
            raise GraphError(
                "there is no calibrated start",
                expected="a live graph that was pruned with calibration samples",
                hint="Without them masks are chosen at the first training batch.",
            )
        self.calibrated.load(session)

    def project(self, train_op: Any) -> Any:
        """With masking "project", or "in-place" and ``update_freq``: what a session is to run instead of a train op.

        It does the same and then writes zeros where the masks drop. With ``update_freq`` it also chooses masks that are
        due, from the updated weights and the dropped values, which are kept apart, and clears the momentum of weights
        that are dropped: of whatever the train op's own update ops move weights without a gradient with. An update that
        cannot be understood is named in a warning. Batches of a train op without this call are right, too: the forward
        pass masks the weights then, at the cost of a multiply; after a batch with it, masks are chosen by it alone.

        Args:
            train_op: an operation or tensor of a live graph that updates weights, of any optimizer. Of several, each is
                to be handed over; as one, a ``tf.group``, where they update the same layer in the same run. Layers that
                it does not update are left as they are.

        Returns:
            An operation, or for a tensor its value.

        Raises:
            GraphError: the masking is another one, it is nothing of the graph, or the graph is finalized.
        """
        if self._projection is None:
            raise GraphError(
                "zeros are not kept by projection",
                where="project",
                expected='a live graph that was pruned with masking = "project", or with "in-place" and update_freq',
                hint=self.plan.masking,
            )
        return self._projection(train_op)

    @property
    def graph_def(self) -> Any:
        """The pruned GraphDef, where a GraphDef or a .pb was pruned.

        Raises:
            GraphError: something else was pruned.
        """
        if isinstance(self.model, FrozenGraph):
            return self.model.graph_def
        raise GraphError(
            "there is no pruned GraphDef",
            expected="a GraphDef or .pb to be pruned",
            hint=self._next_step(),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the pruned model in the kind it came in, whole or not at all; missing parent folders are made.

        A SavedModel's folder is read again for that, one weight at a time: it must still be as it was.

        Returns:
            Where it lies.

        Raises:
            SaveError: it cannot be written there.
            GraphError: a live graph was pruned.
        """
        if self.model is None:
            raise GraphError("a live graph cannot be saved", hint=self._next_step())
        return self.model.save(path)

    @property
    def kept_dense(self) -> tuple[str, ...]:
        """The layers that stay dense within the budget ``keep_dense``."""
        return tuple(decision.name for decision in self.plan.skipped if decision.reason == "kept-dense")

    def report(self) -> Report:
        """The facts about a model at rest that was pruned, layer by layer, with the accounts of its calibration.

        Without calibration the model that was pruned is read again for that: it must still be as it was.

        Raises:
            GraphError: a live graph was pruned.
            MissingFileError, ModelError: the model cannot be read any more.
        """
        if self._reporting is None:
            raise GraphError(
                "a live graph has no pruned weights to report", hint="Report the graph before you prune it."
            )
        return self._reporting()

    def _next_step(self) -> str:
        if self.model is None:
            return "Train the graph, freeze it, then use sparsekit.strip and sparsekit.save."
        return "Use .save(path)."

    def _kept_dense(self) -> str:
        if not self.kept_dense:
            return ""
        return (
            f"keep_dense left {', '.join(self.kept_dense)} dense, of which verifying has to know: by the record of "
            f"this call, or by a config with skip_layers = {json.dumps(self.kept_dense, ensure_ascii=False)}."
        )

    def __str__(self) -> str:
        if self.model is not None:
            parts = [
                str(self.plan),
                accounts_table(self.accounts, self.normalizations).rstrip() if self.accounts else "",
                self._kept_dense(),
            ]
            return "\n".join(part for part in parts if part)
        text = (
            f"{self.plan}\n{len(self.variables)} new variables. Build gradients and sessions after this; a session "
            "that already ran this graph would not see the masks."
        )
        if self.calibrated is None:
            return text
        return (
            f"{text}\n{accounts_table(self.accounts, self.normalizations)}"
            "In the new session, once its variables are initialized and the "
            "dense checkpoint is restored, call result.start(session). Without it masks are chosen by magnitude at the "
            "first batch, and all of the above is lost."
        )


def accounts_table(accounts: Sequence[LayerAccount], normalizations: Sequence[NormalizationAccount] = ()) -> str:
    """What calibration did, a row a layer, and which layers it did not help."""
    rows = [list(account.told().values()) for account in accounts]
    table = text_table([title_of(field) for field in attrs.fields(LayerAccount)], rows)
    worse = worse_in_words(accounts)
    return "\n".join([table.rstrip(), *filter(None, [worse, normalizations_in_words(normalizations)])]) + "\n"


def normalizations_in_words(accounts: Sequence[NormalizationAccount]) -> str:
    """How many batch normalizations were measured anew, and why the others were not; "" if none was to be."""
    if not accounts:
        return ""
    count = f"Batch normalizations measured anew: {sum(n.updated for n in accounts)} of {len(accounts)}."
    return "\n".join([count, *(f"  {n.name}: {n.note}" for n in accounts if not n.updated)])

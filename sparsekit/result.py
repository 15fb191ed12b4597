"""What pruning gives back."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


@attrs.frozen
class LayerAccount:
    """What calibration did to one layer.

    Attributes:
        name: the layer.
        criterion: what chose its weights.
        error_before: of the weights that magnitude alone keeps, on the calibration inputs: the share of the outputs'
            energy that is lost. None where the layer was not calibrated.
        error_after: the same of the weights that were written.
        damping: the ridge that was used, 0 where none was.
        iterations: of the solver.
        seconds: of CPU time; the collection of its inputs included, if it was not that of other layers too.
        shifted: its mean output was restored in the bias that follows.
        note: what stood in the way of something, "" if nothing did.
    """

    name: str
    criterion: str
    error_before: float | None = None
    error_after: float | None = None
    damping: float = 0.0
    iterations: int = 0
    seconds: float = 0.0
    shifted: bool = False
    note: str = ""


@attrs.frozen(eq=False)
class PruneResult:
    """What :func:`sparsekit.prune` did.

    A live graph was edited in place. A session that ran anything of it before does not see the edit: open a new one.

    Attributes:
        plan: every layer with its decision.
        variables: of a live graph, the new variables: a mask and a batch count per pruned layer.
        initializer: of a live graph, an operation that initializes ``variables`` alone, for a session whose other
            variables were restored or initialized in another way.
        model: of a model at rest, the pruned one.
        accounts: with calibration, what it did to every layer, in the order in which they were treated.
        calibrated: of a live graph, with calibration, what it chose; :meth:`start` loads it.
    """

    plan: Plan
    variables: tuple[tf.Variable, ...] = ()
    initializer: tf.Operation | None = attrs.field(default=None, repr=False)
    model: Model | None = attrs.field(default=None, repr=False)
    accounts: tuple[LayerAccount, ...] = attrs.field(default=(), repr=False)
    calibrated: CalibratedStart | None = attrs.field(default=None, repr=False)

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

    def _next_step(self) -> str:
        if self.model is None:
            return "Train the graph, freeze it, then use sparsekit.strip and sparsekit.save."
        return "Use .save(path)."

    def __str__(self) -> str:
        if self.model is not None:
            return f"{self.plan}\n{accounts_table(self.accounts)}".rstrip() if self.accounts else str(self.plan)
        text = (
            f"{self.plan}\n{len(self.variables)} new variables. Build gradients and sessions after this; a session "
            "that already ran this graph would not see the masks."
        )
        if self.calibrated is None:
            return text
        return (
            f"{text}\n{accounts_table(self.accounts)}In the new session, once its variables are initialized and the "
            "dense checkpoint is restored, call result.start(session). Without it masks are chosen by magnitude at the "
            "first batch, and all of the above is lost."
        )


def accounts_table(accounts: Sequence[LayerAccount]) -> str:
    """What calibration did, a row a layer, and which layers it did not help."""
    rows = [
        (
            account.name,
            account.criterion,
            _number(account.error_before, ".3%"),
            _number(account.error_after, ".3%"),
            _number(account.damping or None, "g"),
            str(account.iterations),
            f"{account.seconds:.1f}",
            "yes" if account.shifted else "no",
            account.note,
        )
        for account in accounts
    ]
    header = (
        "layer",
        "criterion",
        "error by magnitude",
        "error",
        "damping",
        "steps",
        "CPU s",
        "bias moved",
        "note",
    )
    table = text_table(header, rows)
    worse = [a.name for a in accounts if (a.error_after or 0.0) > (a.error_before or 0.0)]
    if not worse:
        return table
    return f"{table}Worse than magnitude alone: {', '.join(worse)}. The config key skip_layers leaves them dense.\n"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

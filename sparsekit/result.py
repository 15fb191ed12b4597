"""What pruning gives back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sparsekit.artefact.model import FrozenGraph, Model
from sparsekit.errors import GraphError
from sparsekit.planning import Plan

if TYPE_CHECKING:
    import tensorflow as tf


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
    """

    plan: Plan
    variables: tuple[tf.Variable, ...] = ()
    initializer: tf.Operation | None = attrs.field(default=None, repr=False)
    model: Model | None = attrs.field(default=None, repr=False)

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
            return str(self.plan)
        return (
            f"{self.plan}\n{len(self.variables)} new variables. Build gradients and sessions after this; a session "
            "that already ran this graph would not see the masks."
        )

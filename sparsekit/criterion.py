"""What the author of a criterion implements: how much each weight matters."""

from __future__ import annotations

from typing import Any, ClassVar


class Criterion:
    """Ranks the weights of a layer; the n with the largest score stay in every group of m.

    Attributes:
        name: what ``criterion = "..."`` in a config says.
        live: whether :meth:`score` works on a ``tf.Tensor`` too, so that masks can be chosen inside a training
            graph. Such a score may use operators and :func:`sparsekit.pattern.ordering_key` only, and must be
            deterministic: a forward pass may ask again.
    """

    name: ClassVar[str] = ""
    live: ClassVar[bool] = False

    def score(self, weight: Any, axis: int) -> Any:
        """How much each weight matters.

        Args:
            weight: a numpy array, or a ``tf.Tensor`` of static shape where :attr:`live` is True.
            axis: the group axis.

        Returns:
            The same shape. Floats are ranked by magnitude, compared as integers (denormals count); integers are
            their own order. Equal scores: the lowest index stays.
        """
        raise NotImplementedError

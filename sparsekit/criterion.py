"""What the author of a criterion implements: how much each weight matters, or which weights solve a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsekit.errors import ConfigError

if TYPE_CHECKING:
    from sparsekit.reconstruction import LayerProblem, Solution

Needs = Literal["weights", "statistics"]


class Criterion:
    """Chooses the n weights that stay in every group of m.

    A criterion that goes by the weights alone implements :meth:`score`; one that needs calibration sets
    ``needs = "statistics"`` and implements :meth:`solve`.

    Attributes:
        name: what ``criterion = "..."`` in a config says.
        needs: "weights", or "statistics": sums over calibration inputs too.
        live: whether :meth:`score` works on a ``tf.Tensor`` too, so that masks can be chosen inside a training
            graph. Such a score may use operators and :func:`sparsekit.pattern.ordering_key` only, and must be
            deterministic: a forward pass may ask again.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Needs] = "weights"
    live: ClassVar[bool] = False

    def score(self, weight: Any, axis: int) -> Any:
        """How much each weight matters; the n with the largest score stay in every group of m.

        Args:
            weight: a numpy array, or a ``tf.Tensor`` of static shape where :attr:`live` is True.
            axis: the group axis.

        Returns:
            The same shape. Floats are ranked by magnitude, compared as integers (denormals count); integers are
            their own order. Equal scores: the lowest index stays.

        Raises:
            ConfigError: the criterion has no score for weights alone.
        """
        raise ConfigError(
            f"criterion '{self.name}' cannot choose by weights alone",
            where="criterion",
            expected="calibration samples" if self.needs == "statistics" else "a criterion that implements score",
        )

    def solve(self, problem: LayerProblem) -> Solution:
        """Mask and weights of one layer, whose statistics are known. The default keeps what :meth:`score` says.

        Args:
            problem: weights [K, N] with groups along K, and sums over the inputs; may only be read.

        Returns:
            Weights and mask of the problem's shape, legal for its pattern, zero and unmasked in padding. The same
            problem always gets the same solution.
        """
        from sparsekit.reconstruction import assess

        mask = problem.keep(self.score(problem.weight, 0))
        return assess(problem, mask, problem.weight, guard=False)

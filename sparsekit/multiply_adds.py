"""How many multiply-adds layers take, for one run of a model: shapes by inference, the work of an op by its handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sparsekit.artefact.model import Model
from sparsekit.graph.forward import OneRun
from sparsekit.graph.node import Edge
from sparsekit.graph.shapes import Shape, Shapes
from sparsekit.handler import WeightSite
from sparsekit.plugins import Registry


class MultiplyAdds:
    """Multiply-adds of layers, for one run: an open batch counts as one example, a loop's body as one turn.

    Args:
        registry: the plugins.
        model: the model; None for a live graph.
        shape_of: the shape of what flows along an edge; None: by inference, before the model runs.
    """

    def __init__(
        self, registry: Registry, model: Model | None, shape_of: Callable[[Edge], Shape] | None = None
    ) -> None:
        self._registry = registry
        self._shape_of = shape_of or Shapes().of
        # Several signatures often compute the same; a run asks for one.
        self._one_run = OneRun(model.view, model.main_outputs) if model else None

    def of_layer(self, sites: Iterable[WeightSite]) -> int | None:
        """Those of all ops that use a weight, None where a shape is not known."""
        works = [self._of_op(site) for site in self._run(list(sites))]
        known = [work for work in works if work is not None]
        return sum(known) if len(known) == len(works) else None

    def _run(self, sites: list[WeightSite]) -> list[WeightSite]:
        return [site for site in sites if self._one_run is None or self._one_run.computes(site.node)]

    def _of_op(self, site: WeightSite) -> int | None:
        handler = self._registry.handler(site.node.op)
        assert handler is not None
        inputs = [_known(self._shape_of(edge)) for edge in site.node.inputs]
        inputs[site.input] = site.source.shape_at_op
        output = _known(self._shape_of(Edge(site.node, 0)))
        if output is None:
            return None
        try:
            return handler.multiply_adds(site.node, inputs, output)
        except (TypeError, ValueError, LookupError):  # an input whose shape it asks for is not known
            return None


def _known(shape: Shape) -> tuple[int, ...] | None:
    """A shape all of which is known, else None."""
    return None if shape is None or None in shape else tuple(length or 0 for length in shape)

"""Where the variables live of a model that ``tf.distribute`` trains: copies on devices, or parameter servers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import attrs
import tensorflow as tf
from tensorflow.python.distribute.sharded_variable import ShardedVariable

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError, GraphError

T = TypeVar("T")

_LOOP = """result.wrap(optimizer)

@tf.function
def step(batch):
    def replica(batch):
        with tf.GradientTape() as tape:
            loss = ...
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    strategy.run(replica, args=(batch,))"""


@attrs.frozen
class Distribution:
    """What has to be done on every copy, and what once for all of them.

    Attributes:
        strategy: of ``tf.distribute``; None: variables are variables.
    """

    strategy: Any = None

    @classmethod
    def of(cls, where: str, variables: Iterable[Any]) -> Distribution:
        """The strategy that the variables of a model were made under.

        Raises:
            GraphError: masks cannot be kept under it.
        """
        _refuse_keras_distribution(where)
        strategies = {id(found): found for found in map(_strategy_of, variables) if found is not None}
        for strategy in strategies.values():
            _require_known(where, strategy)
        if len(strategies) > 1:
            raise _of_several("its weights were made under several strategies", where)
        return cls(next(iter(strategies.values()), None))

    @property
    def copies(self) -> bool:
        """Whether a variable has a copy on every device."""
        return isinstance(self.strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy))

    @property
    def asynchronous(self) -> bool:
        """Whether workers do not wait for each other."""
        return isinstance(self.strategy, tf.distribute.ParameterServerStrategy)

    @contextlib.contextmanager
    def scope(self, beside: Any = None) -> Iterator[None]:
        """Variables that are made here live as the model's do.

        Args:
            beside: a variable that they are to be next to, copy by copy.
        """
        with contextlib.ExitStack() as scopes:
            if self.strategy is not None:
                scopes.enter_context(self.strategy.scope())
            if self.strategy is not None and beside is not None:
                scopes.enter_context(self.strategy.extended.colocate_vars_with(beside))
            yield

    def once(self, do: Callable[[], T]) -> T:
        """Do it once for all replicas, when all of them have come so far; variables may be updated there.

        Args:
            do: called where `on_copies` can be; in a replica's step, in a graph and out of it.
        """
        if self.strategy is None:
            return do()
        if not tf.distribute.has_strategy():
            with self.strategy.scope():
                return do()
        if tf.distribute.in_cross_replica_context():
            return do()
        return tf.__internal__.distribute.interim.maybe_merge_call(lambda _: do(), self.strategy)

    def on_copies(self, variable: Any, do: Callable[[], object]) -> None:
        """Do the same on every copy: all variables that were made beside the variable are read and written there."""
        if self.strategy is None:
            do()
        else:
            self.strategy.extended.update(variable, lambda _: do(), group=False)

    def require_own(self, where: str, variable: Any) -> None:
        """A weight must have been made under the strategy.

        Raises:
            GraphError: it was not.
        """
        if self.strategy is not None and _strategy_of(variable) is None:
            raise _of_several(
                f"its weight was made outside of the scope of {_name(self.strategy)}, others in it", where
            )

    def require_forward(self, config: PruneConfig) -> None:
        """Weights must be such that their reads can be masked.

        Raises:
            ConfigError: they have a copy on every device.
        """
        if not self.copies:
            return
        key = "masking" if config.masking == "forward" else "gradient"
        raise ConfigError(
            f"{getattr(config, key)!r} masks weights where they are read, and under {_name(self.strategy)} "
            "every device reads a copy of its own",
            where=f"{config.source}: {key}",
            expected='masking "auto", "in-place" or "project"' if key == "masking" else '"masked"',
            hint="Leave it out; or train on one device.",
        )

    def require_fit(self, where: str) -> None:
        """Keras' own loop must work.

        Raises:
            GraphError: it does not, under this strategy.
        """
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            why = "Keras 3 adds up what the workers' metrics hold in a way that fails"
        elif self.asynchronous:
            why = "Keras 3 cannot hand batches to a ClusterCoordinator"
        else:
            return
        raise GraphError(
            f"Keras' fit does not work under {_name(self.strategy)}, with masks or without: {why}",
            where=where,
            expected="a loop of your own",
            hint=f"Wrap the optimizer and train in a loop:\n{self._loop()}",
        )

    def _loop(self) -> str:
        if self.asynchronous:
            return f"{_LOOP}\n\ncoordinator.schedule(step, args=(per_worker_iterator,)); coordinator.join()"
        return f"{_LOOP}\n\nfor batch in strategy.experimental_distribute_dataset(dataset):\n    step(batch)"


def require_unsplit(where: str, variables: Iterable[Any]) -> None:
    """Variables of Keras must each be one.

    Raises:
        GraphError: one is in several parts.
    """
    for variable in variables:
        if isinstance(variable.value, ShardedVariable):
            raise GraphError(
                f"its weight '{variable.path}' is split over parameter servers, and Keras 3 does not train such "
                "weights, with masks or without",
                where=where,
                expected="every weight on one server",
                hint="Leave variable_partitioner of the strategy out.",
            )


def whole(variable: Any) -> Any:
    """The variable that is meant, be it given as one of Keras or as the copy on one device."""
    if not isinstance(variable, tf.Variable):
        variable = variable.value  # of Keras
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable
    container = getattr(variable.handle, "_distributed_container", None)
    return variable if container is None else container()


def identity(variable: Any) -> int:
    """The same number for the same variable, however it is given."""
    found = whole(variable)
    return id(found if isinstance(found, tf.distribute.DistributedValues) else found.handle)


def _of_several(found: str, where: str) -> GraphError:
    return GraphError(
        found,
        where=where,
        expected="one tf.distribute strategy for all weights",
        hint="Build the whole model in one strategy.scope().",
    )


def _strategy_of(variable: Any) -> Any:
    return getattr(variable, "_distribute_strategy", None)


def _name(strategy: Any) -> str:
    """What users call it; its class may have another name."""
    names = {"CollectiveAllReduceStrategy": "MultiWorkerMirroredStrategy"}
    name = type(strategy).__name__.removesuffix("V1").removesuffix("V2")
    return names.get(name, name)


def _require_known(where: str, strategy: Any) -> None:
    known = (
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
        tf.distribute.ParameterServerStrategy,
    )
    if isinstance(strategy, known):
        return
    if isinstance(strategy, tf.distribute.experimental.CentralStorageStrategy):
        found = "Keras 3 does not train under CentralStorageStrategy: its steps fail"
    else:
        found = f"is made for {_name(strategy)}, under which nobody has tried masks"
    raise GraphError(
        found,
        where=where,
        expected="OneDeviceStrategy, MirroredStrategy, MultiWorkerMirroredStrategy or ParameterServerStrategy",
        hint="On one machine take MirroredStrategy.",
    )


def _refuse_keras_distribution(where: str) -> None:
    keras = sys.modules.get("keras")
    if keras is not None and keras.distribution.distribution() is not None:
        raise GraphError(
            f"keras.distribution is set to {type(keras.distribution.distribution()).__name__}, which does nothing on "
            "TensorFlow",
            where=where,
            expected="a strategy of tf.distribute",
            hint="Build the model in tf.distribute.MirroredStrategy().scope() instead.",
        )

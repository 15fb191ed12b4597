"""AMCT's names for TensorFlow over sparsekit: a script of Huawei's AMCT runs with only its import line changed.

::

    import sparsekit.compat.amct_tensorflow as amct

``python -m sparsekit.compat.amct_tensorflow SCRIPT.py`` runs a script whose import line was not changed either.
Importing this makes no tensor and switches no mode of TensorFlow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit.compat.amct_tensorflow.utils.log import LOGGER
from sparsekit.errors import ConfigError, SparsekitError, UnsupportedTargetWarning

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["create_prune_retrain_model", "save_prune_retrain_model", "set_logging_level"]


def set_logging_level(print_level: str = "info", save_level: str = "info") -> None:
    """Set what is shown on the screen and what is saved in ``amct_log/amct_tensorflow.log``.

    Args:
        print_level, save_level: debug, info, warning or error, in any case.

    Raises:
        ConfigError: another level.
    """
    LOGGER.set_debug_level(print_level, save_level)


def create_prune_retrain_model(graph: tf.Graph, outputs: Any, record_file: Any, config_defination: Any) -> None:
    """Insert masks into a training or inference graph, in place, and write the record file.

    Call it before gradients are built. Where ``SPARSEKIT_TARGET`` is set, an unsupported product is warned of.

    Args:
        graph: the ``tf.Graph``.
        outputs: names of the operations whose results are used; ``name:0``, tensors and operations do too.
        record_file: where the record goes; the second call of the flow overwrites it.
        config_defination: path of AMCT's config in protobuf text format.

    Raises:
        SparsekitError: it cannot be done, and why; the graph is as it was.
    """
    from sparsekit.api import prune
    from sparsekit.live.pruning import require_live

    with _logged("create_prune_retrain_model"):
        require_live(graph)
        _require(outputs=outputs, record_file=record_file, config_defination=config_defination)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = prune(graph, config_defination, outputs=outputs, record=record_file)
        for warning in caught:
            if issubclass(warning.category, UnsupportedTargetWarning):
                LOGGER.push_warning_message(warning.message, "create_prune_retrain_model")
            warnings.warn(warning.message, warning.category, stacklevel=2)
        for decision in result.plan.decisions:
            LOGGER.push_info_message(f"{decision.status}: {decision.message}", "create_prune_retrain_model")
        level = LOGGER.push_info_message if result.plan.pruned else LOGGER.push_warning_message
        level(f"{result.plan.summary()} Record: {os.fspath(record_file)}", "create_prune_retrain_model")


def save_prune_retrain_model(pb_model: Any, outputs: Any, record_file: Any, save_path: Any) -> None:
    """Take the masks out of a frozen inference graph and save it with zeros in its weights.

    Writes ``<save_path>_pruned.pb`` and, for scripts of older releases, ``<save_path>_quantized.pb``: the same file
    under a second name. The result is verified before it is written.

    Args:
        pb_model: path of the frozen pb that still holds the masks.
        outputs: names of the operations whose results are used.
        record_file: the record that ``create_prune_retrain_model`` wrote.
        save_path: ends in a file-name prefix: ``./result/user_model`` gives ``./result/user_model_pruned.pb``.

    Raises:
        SparsekitError: it cannot be done, and why; nothing was written.
    """
    from sparsekit.api import save, strip, verify
    from sparsekit.artefact.graph_def import load_graph_def
    from sparsekit.record import read_record

    module = "save_prune_retrain_model"
    with _logged(module):
        _require(pb_model=pb_model, outputs=outputs, record_file=record_file, save_path=save_path)
        prefix = os.fspath(save_path)
        if not Path(prefix).name or prefix.endswith(("/", os.sep)):
            raise ConfigError(
                f"'{prefix}' ends in a folder",
                where="save_path",
                expected="a file-name prefix, such as ./result/model",
            )
        pruned = strip(load_graph_def(pb_model), record=record_file, outputs=outputs)
        if read_record(record_file).layers:
            verification = verify(pruned, record=record_file, outputs=outputs)
            if not verification.ok:
                raise SparsekitError(verification.summary(), where="pb_model")
            LOGGER.push_info_message(verification.summary(), module)
        else:
            LOGGER.push_warning_message("The record names no layer: the model is saved as it is, dense.", module)
        path, second = f"{prefix}_pruned.pb", f"{prefix}_quantized.pb"
        save(pruned, path, second)
        LOGGER.push_info_message(f"The pruned model is saved as {path}", module)
        LOGGER.push_info_message(f"and, for scripts that expect the older name, as {second}", module)


def _require(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None or (isinstance(value, str) and not value):
            raise ConfigError("is required", where=name, expected="a path" if name != "outputs" else "operation names")


class _ToLogger(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LOGGER.handle(record)


@contextlib.contextmanager
def _logged(module: str) -> Iterator[None]:
    """Send what sparsekit says during a call to AMCT's log, and its errors too."""
    logger, handler = logging.getLogger("sparsekit"), _ToLogger()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    except SparsekitError as error:
        LOGGER.push_error_message(error, module)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

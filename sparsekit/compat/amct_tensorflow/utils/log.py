"""AMCT's log: ``LOGGER``, lines on the screen and in ``amct_log/amct_tensorflow.log`` under the working directory."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from sparsekit.errors import ConfigError, near_matches

LOG_FILE = Path("amct_log", "amct_tensorflow.log")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FORMAT = logging.Formatter("%(asctime)s - %(levelname)s - [AMCT]:[%(module_name)s]: %(message)s")


class _Screen(logging.Handler):
    """Standard error as it is when the line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class _WorkingDirectoryFile(logging.Handler):
    """The log file under the working directory as it is when the line is written.

    A log that cannot be written never stops the user's script; it is said once.
    """

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            LOG_FILE.parent.mkdir(exist_ok=True)
            with LOG_FILE.open("a", encoding="utf-8", errors="backslashreplace") as file:
                print(self.format(record), file=file)
        except OSError as error:
            if not self._failed:
                self._failed = True
                print(
                    f"sparsekit: {LOG_FILE} cannot be written ({error.strerror}); going on without",
                    file=sys.stderr,
                )


class _ModuleName(logging.Filter):
    """Names the module of lines that come from sparsekit itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "module_name"):
            record.module_name = record.module
        return True


class Logger:
    """AMCT's logger: ``push_*_message(text, module_name=...)``.

    Args:
        logger: the ``logging`` logger that lines go to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._screen, self._file = _Screen(), _WorkingDirectoryFile()
        for handler in (self._screen, self._file):
            handler.setFormatter(_FORMAT)
            handler.addFilter(_ModuleName())
            handler.setLevel(logging.INFO)

    def set_debug_level(self, print_level: str = "info", save_level: str = "info") -> None:
        """Set what is shown and what is saved; see :func:`..set_logging_level`."""
        levels = [_level("print_level", print_level), _level("save_level", save_level)]
        for handler, level in zip((self._screen, self._file), levels, strict=True):
            handler.setLevel(level)

    def push_debug_message(self, message: Any, module_name: str = "AMCT") -> None:
        """Log at DEBUG."""
        self._push(logging.DEBUG, message, module_name)

    def push_info_message(self, message: Any, module_name: str = "AMCT") -> None:
        """Log at INFO."""
        self._push(logging.INFO, message, module_name)

    def push_warning_message(self, message: Any, module_name: str = "AMCT") -> None:
        """Log at WARNING."""
        self._push(logging.WARNING, message, module_name)

    def push_error_message(self, message: Any, module_name: str = "AMCT") -> None:
        """Log at ERROR."""
        self._push(logging.ERROR, message, module_name)

    def _push(self, level: int, message: Any, module_name: str) -> None:
        record = self._logger.makeRecord(
            self._logger.name, level, "", 0, str(message), (), None, extra={"module_name": module_name}
        )
        self.handle(record)

    def handle(self, record: logging.LogRecord) -> None:
        """Write one ``logging`` record as AMCT writes its lines."""
        for handler in (self._screen, self._file):
            if record.levelno >= handler.level:
                handler.handle(record)


def _level(argument: str, name: Any) -> int:
    level = _LEVELS.get(str(name).lower())
    if level is None:
        raise ConfigError(
            f"unknown level {name!r}",
            where=argument,
            expected="one of " + ", ".join(_LEVELS),
            hint=near_matches(str(name), _LEVELS),
        )
    return level


LOGGER = Logger(logging.getLogger("sparsekit.compat.amct_tensorflow"))

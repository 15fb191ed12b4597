"""Runs the verbs on files that nobody vouches for, each in a process of its own with little memory and time.

Run as a script it is the server: one fresh interpreter that has loaded TensorFlow and forks for every verb, so that a
crash of TensorFlow, a hang or a lack of memory is an outcome like any other. It reads one request a line from its
standard input and answers in one line.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

MEMORY = 1 << 30
"""Bytes of address space that a verb gets beyond those of the loaded interpreter."""
SECONDS = 60
"""Processor time that a verb gets; four times that by the clock, for machines with much else to do."""


@attrs.frozen
class Outcome:
    """How a verb ended.

    Attributes:
        end: "answered", "refused" (a SparsekitError), "failed" (any other exception), "crashed" or "hung".
        text: the message, or what the answer says.
    """

    end: str
    text: str

    @property
    def fine(self) -> bool:
        return self.end in ("answered", "refused")


def _plan(model: str, folder: str) -> str:
    import sparsekit

    return str(sparsekit.plan(model))


def _report(model: str, folder: str) -> str:
    import sparsekit
    from sparsekit.reporting.text import report_json

    found = sparsekit.report(model)
    return f"{found}{report_json(found)}"


def _prune(model: str, folder: str) -> str:
    import sparsekit

    result = sparsekit.prune(model)
    result.save(Path(folder, "pruned" if Path(model).is_dir() else f"pruned{Path(model).suffix}"))
    return str(result.plan)


def _strip(model: str, folder: str) -> str:
    import sparsekit

    sparsekit.save(sparsekit.strip(model), Path(folder, "stripped.pb"))
    return "stripped"


def _verify(model: str, folder: str) -> str:
    import sparsekit

    return str(sparsekit.verify(model))


def _every(model: str, folder: str) -> str:
    """All of them, one after the other: quicker where much is tried."""
    from sparsekit.errors import SparsekitError

    refusals = []
    for verb in VERBS.values():
        try:
            verb(model, folder)
        except SparsekitError as error:
            refusals.append(str(error))
    return "\n".join(refusals)


VERBS: Mapping[str, Callable[[str, str], str]] = {
    "plan": _plan,
    "report": _report,
    "prune": _prune,
    "strip": _strip,
    "verify": _verify,
}


class Isolation:
    """The server as a context manager; restarts are not needed, since the server itself runs no verb."""

    def __enter__(self) -> Isolation:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()

    def run(
        self, model: Path, verbs: Sequence[str] = tuple(VERBS), memory: int = MEMORY, seconds: int = SECONDS
    ) -> dict[str, Outcome]:
        """What every verb makes of a model."""
        request = {"model": str(model), "verbs": list(verbs), "memory": memory, "seconds": seconds}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server died"
        return {verb: Outcome(**found) for verb, found in json.loads(answer).items()}


# The server


def _serve() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow  # noqa: F401

    import sparsekit.artefact.tflite
    import sparsekit.reporting.text
    from sparsekit.plugins import default_registry

    default_registry()
    for name in sparsekit.__all__:  # what a verb imports when it is first used would be imported by every fork
        getattr(sparsekit, name)
    for line in sys.stdin:
        request = json.loads(line)
        found = {
            verb: attrs.asdict(_forked(verb, request["model"], request["memory"], request["seconds"]))
            for verb in request["verbs"]
        }
        print(json.dumps(found), flush=True)


def _forked(verb: str, model: str, memory: int, seconds: int) -> Outcome:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            os.close(reading)
            _limit(memory, seconds)
            os.write(writing, json.dumps(attrs.asdict(_run(verb, model, folder))).encode())
            os._exit(0)
        os.close(writing)
        data = _all_of(reading, 4 * seconds)
        os.close(reading)
        if data is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data is None:
        return Outcome("hung", f"{4 * seconds} seconds")
    if not data:
        number = os.waitstatus_to_exitcode(status)
        over_time = -number in (signal.SIGXCPU, signal.SIGKILL)
        return Outcome("hung", f"{seconds} seconds of work") if over_time else Outcome("crashed", f"status {number}")
    return Outcome(**json.loads(data))


def _limit(memory: int, seconds: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory,) * 2)


def _run(verb: str, model: str, folder: str) -> Outcome:
    from sparsekit.errors import SparsekitError

    try:
        return Outcome("answered", (_every if verb == "every" else VERBS[verb])(model, folder)[:2_000])
    except SparsekitError as error:
        return Outcome("refused", str(error)[:2_000])
    except BaseException as error:
        return Outcome("failed", f"{_place(error)}: {type(error).__name__}: {str(error)[:500]}")


def _place(error: BaseException) -> str:
    """The innermost line of this project that an exception went through."""
    import traceback

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "sparsekit" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"


def _all_of(pipe: int, seconds: float) -> bytes | None:
    """Everything that is written to a pipe until it is closed; None if that takes too long."""
    data, end = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        chunk: Any = os.read(pipe, 1 << 16)
        if not chunk:
            return data
        data += chunk


if __name__ == "__main__":
    _serve()

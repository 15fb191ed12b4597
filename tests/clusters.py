"""Several processes of one script on this machine that find each other over gRPC, as TensorFlow's clusters do.

Nothing here waits for ever: whoever takes too long is killed, and the test fails with what they all printed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 120
"""What a cluster may take; they take a few, on a machine that does nothing else."""
ROOT = Path(__file__).parents[1]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Cluster:
    """Processes by their task, ``worker 1`` for one; killed at the end of the block, if they live.

    Args:
        script: a Python script, which finds the cluster in TF_CONFIG.
        jobs: how many tasks every job has.
        arguments: of the script.
    """

    def __init__(self, script: Path, jobs: Mapping[str, int], arguments: Sequence[Any] = ()) -> None:
        ports = iter(free_ports(sum(jobs.values())))
        self.spec = {job: [f"127.0.0.1:{next(ports)}" for _ in range(tasks)] for job, tasks in jobs.items()}
        self._command = [sys.executable, str(script), *map(str, arguments)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._outputs: dict[str, Any] = {}
        self._end = time.monotonic() + SECONDS

    def __enter__(self) -> Cluster:
        for job, addresses in self.spec.items():
            for task in range(len(addresses)):
                self.start(job, task)
        return self

    def start(self, job: str, task: int) -> None:
        """Start a task, or start it again."""
        config = {"cluster": self.spec, "task": {"type": job, "index": task}}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")])
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")]),
        }
        output = tempfile.TemporaryFile()
        name = f"{job} {task}"
        self._outputs[name] = output
        self._processes[name] = subprocess.Popen(self._command, env=environment, stdout=output, stderr=output)

    def wait(self, name: str, expected: int = 0) -> str:
        """Wait until a task ends.

        Args:
            name: the task.
            expected: its exit status, -9 where it is killed.

        Returns:
            What it printed.
        """
        try:
            status = self._processes[name].wait(max(self._end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            status = "none"
        assert status == expected, f"{name}: status {status}\n" + self._all_printed()
        return self.printed(name)

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def printed(self, name: str) -> str:
        output = self._outputs[name]
        output.seek(0)
        return output.read().decode(errors="replace")

    def _all_printed(self) -> str:
        return "\n".join(f"--- {name} printed\n{self.printed(name)[-3000:]}" for name in self._outputs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._processes:
            self.kill(name)
        for output in self._outputs.values():
            output.close()

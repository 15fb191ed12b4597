"""Several processes of one script on this machine that find each other over gRPC, as TensorFlow's clusters do.

Nothing here waits for ever: whoever takes too long is killed, and the test fails with what they all printed. Run as a
script it is the host: one fresh interpreter that has imported TensorFlow and forks for every task, since the import
takes longer than most tasks.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 300
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
    """

    def __init__(self, script: Path, jobs: Mapping[str, int]) -> None:
        self._script = script
        self._jobs = jobs
        self._end = time.monotonic() + SECONDS

    def __enter__(self) -> Cluster:
        self._folder = tempfile.TemporaryDirectory()
        paths = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(paths)}
        self._host = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.move()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._host.stdin
        self._host.stdin.close()  # it kills what lives
        self._host.wait()
        self._folder.cleanup()

    def move(self) -> None:
        """To other ports, where tasks of the ones before may not have been forgotten yet."""
        ports = iter(free_ports(sum(self._jobs.values())))
        self.spec = {job: [f"127.0.0.1:{next(ports)}" for _ in range(tasks)] for job, tasks in self._jobs.items()}

    def start_all(self, *arguments: Any) -> None:
        for job, tasks in self._jobs.items():
            for task in range(tasks):
                self.start(f"{job} {task}", *arguments)

    def start(self, name: str, *arguments: Any) -> None:
        """Start a task, or start it again.

        Args:
            name: its job and number.
            arguments: of the script.
        """
        job, _, task = name.partition(" ")
        config = json.dumps({"cluster": self.spec, "task": {"type": job, "index": int(task)}})
        argv = [str(self._script), *map(str, arguments)]
        self._ask("start", name=name, argv=argv, config=config, output=str(self._output(name)))

    def wait(self, name: str, expected: int = 0) -> str:
        """Wait until a task ends.

        Args:
            name: its job and number.
            expected: its exit status, -9 where it is killed.

        Returns:
            What it printed.
        """
        status = self._ask("wait", name=name, seconds=self._end - time.monotonic())
        assert status == expected, f"{name}: status {status}\n" + "\n".join(
            f"--- {path.name} printed\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(Path(self._folder.name).iterdir())
        )
        return self._output(name).read_text(errors="replace")

    def kill(self, name: str) -> None:
        self._ask("kill", name=name)

    def _output(self, name: str) -> Path:
        return Path(self._folder.name, name)

    def _ask(self, verb: str, **arguments: Any) -> Any:
        assert self._host.stdin and self._host.stdout
        self._host.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        self._host.stdin.flush()
        answer = self._host.stdout.readline()
        assert answer, "the host of the cluster died"
        return json.loads(answer)


# The host


class _Host:
    def __init__(self) -> None:
        self._pids: dict[str, int] = {}

    def start(self, name: str, argv: list[str], config: str, output: str) -> None:
        child = os.fork()
        if child:
            self._pids[name] = child
            return
        status = 1
        try:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ["TF_CONFIG"] = config
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # servers and strategies do not always let a process end

    def wait(self, name: str, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self._pids[name], os.WNOHANG)
            if pid:
                del self._pids[name]
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        if name in self._pids:
            os.kill(self._pids[name], signal.SIGKILL)
            os.waitpid(self._pids.pop(name), 0)

    def kill_all(self) -> None:
        for name in list(self._pids):
            self.kill(name)


def _serve() -> None:
    import keras  # noqa: F401
    import tensorflow  # noqa: F401

    from sparsekit.plugins import default_registry

    default_registry()
    host = _Host()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(host, request.pop("verb"))(**request)), flush=True)
    host.kill_all()


if __name__ == "__main__":
    _serve()

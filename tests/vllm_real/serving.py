"""`multiticket serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import requests
from typing_extensions import Self

PATIENCE = 180.0


class Process:
    """Up within the ``with`` block. ``folder`` gets its log."""

    def __init__(self, command: list[str], folder: Path, options: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        self.command = [*command, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
        self.command += ["--max-model-len", "128", "--max-num-seqs", "64", *options]
        self.process: subprocess.Popen | None = None

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
            )

    def wait_until_up(self) -> None:
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            try:
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text(errors="replace")[-3000:])

    def kill(self, how: int = signal.SIGKILL) -> None:
        """The server and its engine, as a machine that fails takes them."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, how)
            self.process.wait(60)

    def __enter__(self) -> Self:
        self.launch()
        self.wait_until_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class VllmServer(Process):
    """`vllm serve` with our weight-transfer engine."""

    def __init__(self, base: str, folder: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", base]
        super().__init__(
            [*command, "--weight-transfer-config", '{"backend": "multiticket"}'], folder, options
        )


class Server(Process):
    """`multiticket serve`."""

    def __init__(
        self, base: str, tickets: dict[str, Path], folder: Path, options: list[str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "multiticket", "serve", base]
        for name, path in tickets.items():
            command += ["--ticket", f"{name}={path}"]
        super().__init__(command, folder, ["--dtype", "float32", *(options or [])])

    def complete(self, prompt: str | list[str], model: str | None, tokens: int = 8, **more: object) -> dict:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": tokens, **more}
        if model is not None:
            body["model"] = model
        answer = requests.post(f"{self.url}/v1/completions", json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def checksums(self) -> object:
        """vLLM's own, of every parameter, with the base in the weights."""
        answer = requests.post(f"{self.url}/weight_checker", json={"action": "checksum"}, timeout=60)
        answer.raise_for_status()
        return answer.json()

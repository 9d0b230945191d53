"""The ``vllm serve`` command line that serves a base with tickets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from multiticket.integrations.vllm.cpu_weights import SWITCH
from multiticket.integrations.vllm.middleware import TICKETS_VARIABLE
from multiticket.ticket import Ticket

_WORKER = "multiticket.integrations.vllm.worker.TicketWorker"
_MIDDLEWARE = "multiticket.integrations.vllm.middleware.TicketMiddleware"
_NOT_WITH_TICKETS = {
    "--worker-extension-cls": "tickets need an engine worker of their own",
    "--api-server-count": "one process must see all requests",
    "--data-parallel-size": "start one server per replica behind a load balancer",
    "--enable-lora": "LoRA adapters wrap the layers that a ticket writes into",
    "--quantization": "a ticket is written into the base's own weights",
    "--headless": "one process must see all requests",
}
_SHORT = {"-dp": "--data-parallel-size", "-asc": "--api-server-count", "-q": "--quantization"}


def serve_command(
    base: str, tickets: Mapping[str, Path], options: Sequence[str] = (), served_name: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """Program and arguments, and the environment, of the server.

    Args:
        base: a folder or a name on the hub.
        tickets: by the name that the OpenAI API's ``model`` field shall choose it by.
        options: for ``vllm serve``, as it takes them.
        served_name: the base's name in the API, where it shall be another than ``base``.

    Raises ValueError, before anything starts, where vLLM is missing, a file is no ticket, or an option does not go
    with tickets.
    """
    if find_spec("vllm") is None:
        raise ValueError("Serving needs vLLM: pip install 'multiticket[vllm]'.")
    for option in options:
        long = option.partition("=")[0]
        long = _SHORT.get(long, long).replace("_", "-")
        if long in _NOT_WITH_TICKETS:
            raise ValueError(f"{long} cannot be combined with tickets: {_NOT_WITH_TICKETS[long]}.")
    for name, path in tickets.items():
        if not name or "/" in name or not name.isprintable():
            raise ValueError(
                f"{name!r} cannot name a ticket: the name is part of a URL and must not contain a slash."
            )
        if name in (base, served_name):
            raise ValueError(f"{name!r} is the base's name; choose another name for the ticket.")
        Ticket.load(path)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", base]
    if served_name is not None:
        command += ["--served-model-name", served_name]
    command += ["--worker-extension-cls", _WORKER, "--middleware", _MIDDLEWARE, *options]
    told = json.dumps({name: str(Path(path).resolve()) for name, path in tickets.items()})
    environment = {**os.environ, TICKETS_VARIABLE: told}
    environment.setdefault(SWITCH, "keep")
    return command, environment

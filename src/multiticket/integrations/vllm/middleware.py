"""vLLM's ``--middleware``: the ``model`` field chooses the ticket, and ``/v1/tickets`` lists, loads and drops them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from multiticket.integrations.vllm.service import TicketService, UnknownTicket

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TICKETS_VARIABLE = "MULTITICKET_SERVE"
"""The environment variable in which `multiticket serve` tells the server: a JSON object, name to file."""

ROUTE = "/v1/tickets"
WITHOUT_WEIGHTS = ("/tokenize", "/detokenize", "/ping", "/health", "/version", "/metrics")
"""POST routes that compute nothing with the weights."""

_asked: ContextVar[str | None] = ContextVar("asked", default=None)
"""The ticket that the present request is answered by."""


class TicketMiddleware:
    """An ASGI middleware around vLLM's OpenAI server."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.service: TicketService | None = None
        self._guarded: App = self._answer

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._loading_before_start(scope["app"].state, send))
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:
            await send(
                {"type": "websocket.close", "code": 1008, "reason": "Tickets are served over HTTP only."}
            )

    def _loading_before_start(self, state: Any, send: Send) -> Send:
        """``send``, which loads the tickets before it says that the server is up, or says why it is not."""

        async def sending(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._start(state)
                except ValueError as error:
                    message = {"type": "lifespan.startup.failed", "message": f"multiticket: {error}"}
            await send(message)

        return sending

    async def _start(self, state: Any) -> None:
        models = state.openai_serving_models
        self.service = TicketService(state.engine_client, [path.name for path in models.base_model_paths])
        _name_answers(models)
        _name_answers(models.registry)
        keys = state.args.api_key or [os.environ.get("VLLM_API_KEY")]
        if tokens := [key for key in keys if key]:
            # vLLM puts this middleware outside its own authentication, so a request has to pass it here already.
            from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

            self._guarded = AuthenticationMiddleware(self._answer, tokens)
        for name, path in json.loads(os.environ.get(TICKETS_VARIABLE, "{}")).items():
            await self._load(state, name, path)

    async def _load(self, state: Any, name: str, path: str) -> dict[str, Any]:
        assert self.service is not None
        facts = await self.service.load(name, path)
        paths = state.openai_serving_models.base_model_paths
        paths.append(type(paths[0])(name=name, model_path=path))
        return facts

    async def _drop(self, state: Any, name: str) -> None:
        assert self.service is not None
        paths = state.openai_serving_models.base_model_paths
        await self.service.drop(name)
        paths[:] = [path for path in paths if path.name != name]

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        assert self.service is not None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == ROUTE or path.startswith(ROUTE + "/"):
            await self._ticket_route(scope, path, receive, send)
        elif scope["method"] in ("GET", "HEAD", "OPTIONS") or path.endswith(WITHOUT_WEIGHTS):
            await self.app(scope, receive, send)
        else:
            await self._in_turn(scope, receive, send)

    async def _in_turn(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on while its ticket is in the weights."""
        assert self.service is not None
        body = await _body(receive)
        if body is None:
            return
        try:
            ticket = self.service.ticket_of(_model_of(body, scope))
        except UnknownTicket as error:
            await _error(send, 404, str(error))
            return
        except ValueError as error:
            await _error(send, 400, str(error))
            return
        answered = asyncio.create_task(self._pass_on(ticket, scope, rest := _Rest(body, receive), send))
        try:
            await rest.while_wanted(answered)
        except _NoTurn as error:
            await _error(send, error.status, str(error))

    async def _pass_on(self, ticket: str | None, scope: Message, rest: _Rest, send: Send) -> None:
        assert self.service is not None
        turn = self.service.turn(ticket)
        try:
            await turn.__aenter__()
        except ValueError as error:
            raise _NoTurn(404, str(error)) from error
        except Exception as error:
            raise _NoTurn(
                503, f"The weights of {ticket or 'the base'} could not be written: {error}"
            ) from error
        rest.begun = True
        _asked.set(ticket)
        try:
            await self.app(scope, rest, send)
        finally:
            await turn.__aexit__(None, None, None)

    async def _ticket_route(self, scope: Message, path: str, receive: Receive, send: Send) -> None:
        """GET and POST ``/v1/tickets``, DELETE ``/v1/tickets/NAME``, POST ``/v1/tickets/NAME/use``."""
        assert self.service is not None
        state, method = scope["app"].state, scope["method"]
        name = path.removeprefix(ROUTE).strip("/")
        try:
            if method == "GET" and not name:
                await _json(send, 200, self.service.state())
            elif method == "POST" and not name:
                told = _object(await _body(receive))
                if set(told) != {"name", "file"} or not all(isinstance(text, str) for text in told.values()):
                    raise ValueError('Send {"name": NAME, "file": FILE}.')
                facts = await self._load(state, told["name"], os.path.abspath(told["file"]))
                await _json(send, 200, {"name": told["name"], **facts})
            elif method == "DELETE":
                await self._drop(state, name)
                await _json(send, 200, {"dropped": name})
            elif method == "POST" and name.endswith("/use"):
                name = name.removesuffix("/use")
                await _json(send, 200, {"default": name, "ms": await self.service.use(name)})
            else:
                await _error(send, 404, f"There is no {method} {path}; see docs/vllm.md.")
        except UnknownTicket as error:
            await _error(send, 404, str(error))
        except ValueError as error:
            await _error(send, 400, str(error))


class _NoTurn(Exception):
    """A request did not get its weights."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Rest:
    """What is left of a request once its body was read: the body again, and then whether the client hung up."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._next: asyncio.Task[Message] | None = None
        self.begun = False
        """Whether the server has it; from then on it is the server that asks whether the client is there."""

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(self._listen())

    def _listen(self) -> asyncio.Task[Message]:
        if self._next is None or (self._next.done() and self._next.result()["type"] != "http.disconnect"):
            self._next = asyncio.ensure_future(self._receive())
        return self._next

    async def while_wanted(self, work: asyncio.Task[None]) -> None:
        """Wait for ``work``, but give it up where the client hangs up before it has begun."""
        gone = self._listen()
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self.begun:
                work.cancel()
            await work
        except asyncio.CancelledError:
            if not work.cancelled():  # it is this request that is cancelled
                work.cancel()
                raise
        finally:
            if self._next is not None:
                self._next.cancel()


def _name_answers(models: Any) -> None:
    """Let an answer's ``model`` be the ticket that gave it."""
    of_the_base = models.model_name
    models.model_name = lambda *args, **kwargs: _asked.get() or of_the_base(*args, **kwargs)


async def _body(receive: Receive) -> bytes | None:
    """A request's whole body; None where the client hung up before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _model_of(body: bytes, scope: Message) -> str | None:
    """The ``model`` of a JSON body. Raises ValueError for a body whose ticket cannot be told, or whose work would
    outlast its answer."""
    if not body:
        return None
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    if types and b"json" not in types[0]:
        raise ValueError("With tickets, requests must be JSON: another body does not name its model.")
    told = _object(body)
    if told.get("background"):
        raise ValueError(
            "With tickets, background responses are not supported: they would outlast their turn."
        )
    model = told.get("model")
    if model is not None and not isinstance(model, str):
        raise ValueError("The request's model must be a name.")
    return model


def _object(body: bytes | None) -> dict[str, Any]:
    try:
        told = json.loads(body or b"")
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ValueError("The request's body must be a JSON object.")
    return told


async def _error(send: Send, status: int, sentence: str) -> None:
    """In the OpenAI API's form."""
    kind = (
        "NotFoundError" if status == 404 else "BadRequestError" if status < 500 else "ServiceUnavailableError"
    )
    await _json(
        send, status, {"error": {"message": sentence, "type": kind, "param": "model", "code": status}}
    )


async def _json(send: Send, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

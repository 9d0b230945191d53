"""The middleware around a stand-in for vLLM's server: the model field chooses, faults are told, nothing mixes."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multiticket.integrations.vllm.middleware import TICKETS_VARIABLE, TicketMiddleware


class Engine:
    """vLLM's engine client with one worker."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.weights: str | None = None
        self.running = 0
        self.paused = False
        self.cache_of: str | None = None
        self.fail_next = False

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert mode == "wait"
        assert clear_cache
        self.paused = True
        while self.running:
            await asyncio.sleep(0)
        self.cache_of = None

    async def resume_generation(self) -> None:
        self.paused = False

    async def collective_rpc(self, method: str, args: tuple) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        if method == "multiticket_load":
            name, path = args
            assert self.weights is None, "loaded while a ticket is in the weights"
            if "broken" in path:
                return [{"refused": "it is truncated, or not a ticket."}]
            self.held[name] = path
            return [{"values": 3}]
        if method == "multiticket_drop":
            assert self.weights != args[0]
            del self.held[args[0]]
            return [{}]
        assert self.paused
        assert not self.running
        if self.fail_next:
            self.fail_next = False
            self.weights = "torn"
            raise RuntimeError("the device is lost")
        if args[0] is not None and args[0] not in self.held:
            return [{"refused": f"There is no ticket {args[0]!r}."}]
        self.weights = args[0]
        return [{}]

    async def generate(self, steps: int) -> str:
        while self.paused:
            await asyncio.sleep(0)
        self.running += 1
        seen = {self.weights}
        try:
            assert self.cache_of in (None, str(self.weights)), "the cache of other weights"
            self.cache_of = str(self.weights)
            for _ in range(steps):
                await asyncio.sleep(0)
                seen.add(self.weights)
        finally:
            self.running -= 1
        assert len(seen) == 1, "the weights changed inside a request"
        return str(self.weights)


class Server:
    """vLLM's server with our middleware around it, on no socket."""

    def __init__(self, api_key: list[str] | None = None) -> None:
        self.engine = Engine()
        paths = [SimpleNamespace(name="base", model_path="there")]
        registry = SimpleNamespace(model_name=lambda: paths[0].name)
        models = SimpleNamespace(
            base_model_paths=paths, registry=registry, model_name=lambda lora=None: paths[0].name
        )
        state = SimpleNamespace(
            openai_serving_models=models, engine_client=self.engine, args=SimpleNamespace(api_key=api_key)
        )
        self.app = SimpleNamespace(state=state)
        self.middleware = TicketMiddleware(self._vllm)
        self.lingering: set[asyncio.Task] = set()

    async def _vllm(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        if scope["method"] == "GET":
            text = {"models": [path.name for path in self.app.state.openai_serving_models.base_model_paths]}
        else:
            told = json.loads((await receive())["body"] or b"{}")
            work = asyncio.create_task(self.engine.generate(told.get("steps", 1)))
            gone = asyncio.create_task(receive())
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if (
                not work.done()
            ):  # as after a client that hung up: vLLM returns, and the engine is a step behind
                self.lingering.add(work)
                return
            text = {"weights": await work, "model": self.app.state.openai_serving_models.model_name()}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(text).encode()})

    async def start(self) -> list[dict]:
        sent: list[dict] = []

        async def receive() -> dict:
            return {"type": "lifespan.startup"}

        async def send(message: dict) -> None:
            sent.append(message)

        await self.middleware({"type": "lifespan", "app": self.app}, receive, send)
        return sent

    async def ask(
        self,
        body: Any = None,
        method: str = "POST",
        path: str = "/v1/completions",
        hang_up: int | None = None,
        kind: bytes = b"application/json",
    ) -> tuple[int, dict]:
        """Status and JSON; ``hang_up``: after that many turns of the event loop."""
        sent: list[dict] = []
        told = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        answered = asyncio.Event()
        first = True

        async def receive() -> dict:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": told, "more_body": False}
            if hang_up is None:
                await answered.wait()
            else:
                for _ in range(hang_up):
                    await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "app": self.app,
            "method": method,
            "path": path,
            "headers": [(b"content-type", kind)],
        }
        await self.middleware(scope, receive, send)
        answered.set()
        if not sent:
            return 0, {}
        return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture
def tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TICKETS_VARIABLE, json.dumps({name: f"/{name}" for name in "abc"}))


@pytest.mark.usefixtures("tickets")
@pytest.mark.parametrize("seed", range(5))
def test_hundreds_of_requests_each_by_their_own_ticket(seed: int) -> None:
    draw = random.Random(seed)

    async def client(server: Server) -> None:
        for _ in range(20):
            model = draw.choice(["a", "b", "c", "base", None])
            hang_up = draw.choice([None, None, 0, 3, 9])
            body = {"steps": draw.randrange(6), **({"model": model} if model else {})}
            status, told = await server.ask(body, hang_up=hang_up)
            if status == 0:
                assert hang_up is not None
                continue
            expected = model if model in ("a", "b", "c") else None
            assert (status, told["weights"], told["model"]) == (200, str(expected), expected or "base")

    async def run() -> None:
        server = Server()
        assert await server.start() == [{"type": "lifespan.startup.complete"}]
        await asyncio.wait_for(asyncio.gather(*(client(server) for _ in range(12))), 60)
        await asyncio.gather(*server.lingering)
        assert server.middleware.service is not None
        assert server.middleware.service._turns._inside == 0
        assert (await server.ask({"model": "b"}))[1]["weights"] == "b"

    asyncio.run(run())


@pytest.mark.usefixtures("tickets")
def test_tickets_are_listed_loaded_used_and_dropped() -> None:
    async def run() -> None:
        server = Server()
        await server.start()
        route = "/v1/tickets"
        status, told = await server.ask(method="GET", path=route)
        assert (status, list(told["tickets"]), told["base"]) == (200, ["a", "b", "c"], ["base"])
        await server.ask({"model": "a"})
        assert (await server.ask({"name": "d", "file": "/d"}, path=route))[0] == 200
        assert (await server.ask({"model": "d"}))[1] == {"weights": "d", "model": "d"}
        assert (await server.ask(method="GET", path="/v1/models"))[1]["models"] == [
            "base",
            "a",
            "b",
            "c",
            "d",
        ]
        status, told = await server.ask(path=f"{route}/d/use")
        assert (status, told["default"]) == (200, "d")
        assert (await server.ask({}))[1]["model"] == "d"
        assert (await server.ask({"model": "base"}))[1]["model"] == "base"
        assert (await server.ask(method="DELETE", path=f"{route}/d"))[0] == 200
        assert (await server.ask({}))[1]["model"] == "base"
        for body, path, method, expected, words in [
            ({"model": "d"}, "/v1/completions", "POST", 404, "There is no model or ticket 'd'"),
            (None, f"{route}/d", "DELETE", 404, "There is no ticket 'd'"),
            (None, f"{route}/d/use", "POST", 404, "There is no model or ticket 'd'"),
            ({"name": "a", "file": "/x"}, route, "POST", 400, "already"),
            ({"name": "base", "file": "/x"}, route, "POST", 400, "already"),
            ({"name": "x/y", "file": "/x"}, route, "POST", 400, "slash"),
            ({"name": "e", "file": "/broken"}, route, "POST", 400, "truncated"),
            ({"name": "e"}, route, "POST", 400, "Send {"),
            (b"{", "/v1/completions", "POST", 400, "must be a JSON object"),
            ({"model": 3}, "/v1/completions", "POST", 400, "must be a name"),
            ({"background": True}, "/v1/responses", "POST", 400, "background"),
            (None, route, "PATCH", 404, "There is no PATCH"),
        ]:
            status, told = await server.ask(body, path=path, method=method)
            assert (status, words in told["error"]["message"]) == (expected, True), told
        status, told = await server.ask(
            b"x", path="/v1/audio/transcriptions", kind=b"multipart/form-data; boundary=x"
        )
        assert (status, "JSON" in told["error"]["message"]) == (400, True)
        assert (await server.ask({"model": "c"}))[1]["weights"] == "c"

    asyncio.run(run())


@pytest.mark.usefixtures("tickets")
def test_a_ticket_dropped_under_load_and_a_failed_swap_are_told() -> None:
    async def run() -> None:
        server = Server()
        await server.start()
        busy = [asyncio.create_task(server.ask({"model": "a", "steps": 30})) for _ in range(3)]
        late = asyncio.create_task(server.ask({"model": "b", "steps": 3}))
        await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (await server.ask(method="DELETE", path="/v1/tickets/b"))[0] == 200
        assert [(await task)[1]["weights"] for task in busy] == ["a"] * 3
        assert (await late)[0] in (200, 404)
        server.engine.fail_next = True
        status, told = await server.ask({"model": "c"})
        assert (status, "the device is lost" in told["error"]["message"]) == (503, True)
        assert "unknown" in (await server.ask(method="GET", path="/v1/tickets"))[1]["serving"]
        assert (await server.ask({}))[1]["weights"] == "None", "the base was written again"
        assert (await server.ask({"model": "c"}))[1]["weights"] == "c"

    asyncio.run(run())


def test_a_broken_ticket_at_the_start_is_said_and_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TICKETS_VARIABLE, json.dumps({"a": "/broken"}))
    assert asyncio.run(Server().start()) == [
        {"type": "lifespan.startup.failed", "message": "multiticket: it is truncated, or not a ticket."}
    ]


def test_websockets_are_refused() -> None:
    async def run() -> list[dict]:
        sent: list[dict] = []

        async def send(message: dict) -> None:
            sent.append(message)

        await Server().middleware({"type": "websocket"}, None, send)  # type: ignore[arg-type]
        return sent

    assert asyncio.run(run())[0]["type"] == "websocket.close"


class TestCommand:
    """`multiticket serve`, up to the point where vLLM begins."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        from test_ticket_cache import make

        make(1).save(tmp_path / "t.safetensors")
        return tmp_path / "t.safetensors"

    @pytest.fixture(autouse=True)
    def _vllm_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("multiticket.integrations.vllm.command.find_spec", lambda name: name)

    def test_the_command_line(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from multiticket import bases, cli

        ran = []
        monkeypatch.setattr("os.execve", lambda *args: ran.append(args))
        with pytest.raises(SystemExit) as stopped:
            cli.main(
                [
                    "serve",
                    "tiny-qwen2",
                    "--ticket",
                    f"one={file}",
                    "--port",
                    "8001",
                    "--ticket",
                    f"two={file}",
                ]
            )
        assert stopped.value.code == 0
        ((_, command, environment),) = ran
        assert command[3:7] == ["serve", bases.resolve("tiny-qwen2"), "--served-model-name", "tiny-qwen2"]
        assert command[-2:] == ["--port", "8001"]
        assert json.loads(environment[TICKETS_VARIABLE]) == {"one": str(file), "two": str(file)}

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--ticket", "one"], "NAME=FILE"),
            (["--ticket", "one=nowhere"], "There is no ticket nowhere"),
            (["--ticket", "a/b=FILE"], "slash"),
            (["--ticket", "tiny-qwen2=FILE"], "base's name"),
            (["--ticket", "one=FILE", "--ticket", "one=FILE"], "Two tickets"),
            (["--enable-lora"], "--enable-lora cannot be combined with tickets"),
            (["-dp", "2"], "--data-parallel-size cannot be combined with tickets"),
            (["--api_server_count=2"], "--api-server-count cannot be combined with tickets"),
        ],
    )
    def test_mistakes_are_told_in_a_sentence(
        self, file: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from multiticket import cli

        with pytest.raises(SystemExit) as stopped:
            cli.main(["serve", "tiny-qwen2", *(text.replace("FILE", str(file)) for text in arguments)])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err

"""`multiticket serve` under load and faults: each answer is the merged checkpoint's, and the base comes back."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from real_tickets import BASE, greedy, prompts
from serving import Server

PROMPTS = 24


@pytest.fixture(scope="module")
def expected(tickets: dict[str, Path]) -> dict[str, dict[str, str]]:
    """By name, what the merged checkpoint says to each prompt."""
    told = {name: greedy(path, prompts(PROMPTS)) for name, path in tickets.items()}
    told[BASE] = greedy(None, prompts(PROMPTS))
    for one in told:
        for other in told:
            common = told[one].keys() & told[other].keys()
            apart = sum(told[one][text] != told[other][text] for text in common)
            assert one == other or apart >= len(common) / 3
    return told


@pytest.fixture(scope="module")
def third(server: Server, tickets: dict[str, Path]) -> str:
    """The third ticket, loaded while the server runs."""
    answer = requests.post(
        f"{server.url}/v1/tickets", json={"name": "three", "file": str(tickets["three"])}, timeout=60
    )
    assert answer.ok, answer.text
    return "three"


def test_every_answer_is_its_own_tickets_under_load(
    server: Server, third: str, expected: dict[str, dict[str, str]]
) -> None:
    before = server.checksums()
    cases = [(name, text) for name, told in expected.items() for text in told] * 6
    random.Random(0).shuffle(cases)
    assert len(cases) >= 300
    wrong: list[tuple[str, str, str]] = []

    def ask(case: tuple[str, str]) -> None:
        name, text = case
        told = server.complete(text, name)
        assert told["model"] == name
        if told["choices"][0]["text"] != expected[name][text]:
            wrong.append((name, text, told["choices"][0]["text"]))

    swaps = requests.get(f"{server.url}/v1/tickets", timeout=30).json()["swaps"]
    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, cases))
    assert not wrong
    state = requests.get(f"{server.url}/v1/tickets", timeout=30).json()
    print(f"\n{len(cases)} requests, {state['swaps'] - swaps} swaps, the last {state['swap_ms']:.1f} ms")
    assert state["swaps"] - swaps > 4
    assert server.checksums() == before, "the base came back bit for bit"


def test_a_long_request_keeps_its_weights_while_others_wait(
    server: Server, expected: dict[str, dict[str, str]]
) -> None:
    text = next(iter(expected["one"]))
    alone = server.complete(text, "one", tokens=100, ignore_eos=True)["choices"][0]["text"]
    with ThreadPoolExecutor(4) as clients:
        long = clients.submit(server.complete, text, "one", 100, ignore_eos=True)
        others = [clients.submit(server.complete, text, name) for name in ("two", BASE, "two")]
        assert long.result()["choices"][0]["text"] == alone
        assert others[0].result()["choices"][0]["text"] == others[2].result()["choices"][0]["text"]


def test_the_chat_route_and_streams_are_answered_by_their_ticket(
    server: Server, expected: dict[str, dict[str, str]]
) -> None:
    for name in ("two", "one", BASE):
        text = next(iter(expected[name]))
        body = {"model": name, "prompt": text, "temperature": 0, "max_tokens": 8, "stream": True}
        with requests.post(f"{server.url}/v1/completions", json=body, stream=True, timeout=60) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: {")]
        pieces = [requests.models.complexjson.loads(line) for line in lines]
        assert {piece["model"] for piece in pieces} == {name}
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected[name][text]


def test_a_cached_prefix_of_other_weights_is_never_used(
    server: Server, expected: dict[str, dict[str, str]]
) -> None:
    texts = [text for text in expected["one"] if text in expected["two"]][:4]
    for _ in range(3):
        for name in ("one", "two"):
            for text in texts:
                assert server.complete(text, name)["choices"][0]["text"] == expected[name][text]


def test_broken_tickets_are_refused_while_others_serve(
    server: Server, tickets: dict[str, Path], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tickets["three"].read_bytes()[:-5])
    from multiticket.ticket import Ticket

    whole = Ticket.load(tickets["three"])
    other = tmp_path / "other.safetensors"
    Ticket(whole.mask, whole.sections[0].values, "0" * 64).save(other)
    stop, failed = threading.Event(), Counter[str]()

    def keep_asking(name: str) -> None:
        while not stop.is_set():
            for text in list(expected[name])[:4]:
                if server.complete(text, name)["choices"][0]["text"] != expected[name][text]:
                    failed[name] += 1

    asking = [threading.Thread(target=keep_asking, args=(name,)) for name in ("one", "two", BASE)]
    for thread in asking:
        thread.start()
    try:
        for file, words in [
            (cut, "it is truncated"),
            (other, "another base"),
            (tmp_path / "none", "No such file"),
        ]:
            answer = requests.post(
                f"{server.url}/v1/tickets", json={"name": "bad", "file": str(file)}, timeout=60
            )
            assert answer.status_code == 400
            assert words in answer.json()["error"]["message"]
        answer = requests.post(
            f"{server.url}/v1/completions", json={"model": "bad", "prompt": "1"}, timeout=60
        )
        assert answer.status_code == 404
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert not failed


def test_clients_that_hang_up_leave_no_trace(server: Server, expected: dict[str, dict[str, str]]) -> None:
    text = next(iter(expected["one"]))
    before = server.checksums()
    for seconds in (0.005, 0.02, 0.05):
        for name in ("one", "two"):
            body = {"model": name, "prompt": [text] * 64, "max_tokens": 110, "ignore_eos": True}
            with pytest.raises(requests.exceptions.ReadTimeout):
                requests.post(f"{server.url}/v1/completions", json=body, timeout=(5, seconds))
        assert server.complete(text, "one")["choices"][0]["text"] == expected["one"][text]
    assert server.checksums() == before


def test_use_and_drop(server: Server, third: str, expected: dict[str, dict[str, str]]) -> None:
    text = next(iter(expected[third]))
    route = f"{server.url}/v1/tickets"
    assert requests.post(f"{route}/{third}/use", timeout=30).json()["default"] == third
    assert server.complete(text, None)["choices"][0]["text"] == expected[third][text]
    assert requests.get(route, timeout=30).json()["serving"] == third
    assert requests.post(f"{route}/{BASE}/use", timeout=30).ok
    text = next(iter(expected[BASE]))
    assert server.complete(text, None)["choices"][0]["text"] == expected[BASE][text]
    assert third in [
        model["id"] for model in requests.get(f"{server.url}/v1/models", timeout=30).json()["data"]
    ]


def test_a_killed_server_starts_again_and_answers_alike(
    tickets: dict[str, Path], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with Server(BASE, {"one": tickets["one"]}, tmp_path) as running:
        text = next(iter(expected["one"]))
        assert running.complete(text, "one")["choices"][0]["text"] == expected["one"][text]
        before = running.checksums()
        with ThreadPoolExecutor(32) as clients:
            asked = [clients.submit(running.complete, text, "one", 100, ignore_eos=True) for _ in range(96)]
            asked[0].result()
            running.kill(signal.SIGKILL)
            faults = [fault for each in asked if (fault := each.exception()) is not None]
        assert faults
        assert all(isinstance(fault, requests.RequestException) for fault in faults)
        running.launch()
        running.wait_until_up()
        assert running.checksums() == before
        assert running.complete(text, "one")["choices"][0]["text"] == expected["one"][text]


def test_a_ticket_of_another_base_at_the_start_is_said(tickets: dict[str, Path], tmp_path: Path) -> None:
    server = Server("tiny-qwen3", {"one": tickets["one"]}, tmp_path)
    server.launch()
    assert server.process is not None
    try:
        assert server.process.wait(180) != 0
        assert "cannot take a ticket" in server.log.read_text() or "another base" in server.log.read_text()
    finally:
        server.kill()


def test_two_ranks_with_half_the_weights_each(
    tickets: dict[str, Path], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    given = {name: tickets[name] for name in ("one", "two")}
    options = ["--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"]
    with Server(BASE, given, tmp_path, options) as running:
        before = running.checksums()
        for name in ("one", "two", BASE, "one"):
            for text in list(expected[name])[:8]:
                assert running.complete(text, name)["choices"][0]["text"] == expected[name][text]
        assert running.checksums() == before

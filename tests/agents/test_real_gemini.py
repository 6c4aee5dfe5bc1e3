"""The real gemini against a server on loopback: what its adapter relies on, as it is. Seen with 0.61.0.

Found on PATH or by SENNIT_TEST_GEMINI; each run costs 3 CPU seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters.gemini import Gemini
from tests.agents.fakes import FakeDesk
from tests.agents.real_programs import ALONE, program

SETTINGS = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False}}
WRITE = {"functionCall": {"name": "write_file", "args": {"file_path": "new.txt", "content": "hello"}}}


class Model(ThreadingHTTPServer):
    """Answers Gemini's API: first with a tool to use, then with words."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status = 200
        self.seen: list[list[dict[str, Any]]] = []  # the contents of each request


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Model

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        contents = body.get("contents", [])
        self.server.seen.append(contents)
        is_first = not any("functionResponse" in part for content in contents for part in content.get("parts", []))
        part = WRITE if is_first else {"text": "All done."}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        counted = {
            "promptTokenCount": 10,
            "candidatesTokenCount": 5,
            "totalTokenCount": 15,
            "cachedContentTokenCount": 2,
        }
        answer: dict[str, Any] = {"candidates": [candidate], "usageMetadata": counted, "modelVersion": "m"}
        if self.server.status != 200:
            answer = {"error": {"code": self.server.status, "message": "no", "status": "X"}}
        is_stream = self.server.status == 200 and "stream" in self.path
        data = f"data: {json.dumps(answer)}\r\n\r\n" if is_stream else json.dumps(answer)
        self.send_response(self.server.status)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base calls it
        pass


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def desk(model: Model, tmp_path: Path) -> FakeDesk:
    gemini = Gemini(program=program("gemini", "SENNIT_TEST_GEMINI"), model="gemini-2.5-flash", approval_mode="yolo")
    home = tmp_path / "home" / ".gemini"
    home.mkdir(parents=True)
    (home / "settings.json").write_text(json.dumps(SETTINGS))
    environ = {
        **ALONE,
        "GEMINI_CLI_HOME": str(home.parent),
        "GEMINI_API_KEY": "any",
        "GOOGLE_GEMINI_BASE_URL": f"http://127.0.0.1:{model.server_port}",
    }
    return FakeDesk(tmp_path, gemini, environ)


def test_it_uses_a_tool_and_goes_on_with_its_session_in_another_process(desk: FakeDesk, model: Model) -> None:
    chosen = desk.session_id

    first = desk.run("do it")
    second = desk.run("--go on {prompt}", resume=True)

    assert (first.end.outcome, first.end.text, first.end.session_id) == ("success", "All done.", chosen)
    assert (desk.cwd / "new.txt").read_text() == "hello"
    assert [event.tool for event in first.of("tool_begin")] == ["write_file"]
    assert [event.is_error for event in first.of("tool_end")] == [False]
    assert (first.end.usage.input_tokens, first.end.usage.output_tokens, first.end.turns) == (20, 10, 2)
    assert (second.end.outcome, second.end.usage.input_tokens) == ("success", 10)
    said = json.dumps(model.seen[-1])
    assert "do it" in said
    assert "--go on {prompt}" in said


def test_it_tells_a_refused_key_and_a_session_it_does_not_know(desk: FakeDesk, model: Model) -> None:
    model.status = 401

    refused = desk.run("do it")
    desk.session_id = "11111111-1111-4111-8111-111111111111"
    lost = desk.run("go on", resume=True)

    assert (refused.end.outcome, refused.end.status, refused.exit.code) == ("unauthorised", 401, 145)
    assert (lost.end.outcome, lost.exit.code) == ("lost_session", 42)

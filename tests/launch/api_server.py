"""A server of OpenAI's protocol whose misbehaviour a test scripts; it answers itself, or hands on to a real one."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NATS = 2.0
"""Of every piece of text but the first."""


class ApiServer(ThreadingHTTPServer):
    """Answers a prompt with its last word, `logs` where it is to, and does first what stands in `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: deque[str | tuple[int, dict[str, str], str]] = deque()
        """`cut`, `silence`, `empty`, `garbage`, `choiceless`, `page`, or a status with headers and words; one for
        each request."""
        self.asked: Counter[str] = Counter()
        """Answers that were sent whole, by prompt."""
        self.requests = 0
        self.keys: set[str] = set()
        self.echoes_key = False
        self.knows_logprobs = True
        self.upstream: str | None = None
        self.released = threading.Event()
        """Ends every silence."""
        self.most_at_once = 0
        self._at_once = 0
        self.turn = threading.Lock()
        self.hold_after: int | None = None
        """Answers after which everything is silence."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is none of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.turn:
            server.requests += 1
            server.keys.add(self.headers.get("Authorization", ""))
            fault = server.faults.popleft() if server.faults else None
            if server.hold_after is not None and server.asked.total() >= server.hold_after:
                fault = "silence"
        if isinstance(fault, tuple):
            status, headers, words = fault
            self._send(
                {"error": {"message": words.replace("KEY", self.headers["Authorization"][7:])}}, status, headers
            )
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif fault == "silence":
            server.released.wait(600)
            self.close_connection = True
        elif fault == "garbage":
            self._send(["what is this"])
        elif fault == "choiceless":
            self._send({"error": {"message": "no room", "code": 502}})
        elif fault == "page":
            self._send("<html>Welcome</html>", headers={"Content-Type": "text/html"})
        else:
            reply = self._upstream(body) if server.upstream else self._own(body)
            if fault == "empty":
                reply["choices"][0]["message"]["content"] = None
            with server.turn:
                server.asked[_prompt(body)] += 1
            self._send(reply)

    def _own(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = _prompt(body)
        usage = {"prompt_tokens": len(prompt.split()) + 3, "completion_tokens": 4}
        if self.path == "/v1/completions":
            pieces = re.findall(r"\s*\S+|\s+$", prompt)
            logs = [None, *[-NATS] * len(pieces[1:])]
            known = {"tokens": [*pieces, " x"], "token_logprobs": [*logs, -9.0]}
            choice = {"text": f"{prompt} x", "finish_reason": "length"}
            usage["prompt_tokens"] = len(pieces)
            if not self.server.knows_logprobs:
                known, choice["text"] = None, " x"
            return {"choices": [{**choice, "logprobs": known}], "usage": usage}
        said = self.headers["Authorization"] if self.server.echoes_key else prompt.split()[-1]
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
                "usage": usage}  # fmt: skip

    def _upstream(self, body: dict[str, Any]) -> dict[str, Any]:
        address = f"{self.server.upstream}{self.path.removeprefix('/v1')}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _send(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _prompt(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


@contextmanager
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()

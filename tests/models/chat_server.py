"""A chat server in its own process: answers by what the row says (`case:NAME`), or with a language model.

    python -m tests.models.chat_server LOG [--model FOLDER] [--delay SECONDS]

Prints its port. Every request is appended to LOG: its body, its key, the number of the reply.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "The first line of your reply must be"


def rating(text: str) -> str:
    """A rating that follows from the text of a request, so that any run gives the same."""
    return str(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 11 / 2)


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "served-model",
        "choices": [
            {
                "index": 0, "message": {"role": "assistant", "content": text, **message},
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: Path
    delay = 0.0
    generate: Callable[[list[dict[str, str]], int], tuple[str, str, int, int]] | None = None
    seen: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = body["messages"][-1]["content"]
        case = (re.search(r"case:([a-z0-9-]+)", user) or ["", "plain"])[1]
        entry = {
            "body": body,
            "key": self.headers.get("Authorization"),
            "path": self.path,
            "time": time.time(),
        }
        with self.lock:
            self.seen[user] += 1
            attempt = self.seen[user]
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "attempt": attempt}) + "\n")
        time.sleep(self.delay)
        self.answer(case, user, attempt, body)

    def answer(self, case: str, user: str, attempt: int, body: dict[str, Any]) -> None:
        score, again = rating(user.split("\n", 1)[1]), AGAIN in user
        if self.generate is not None:
            text, finish, read, written = self.generate(body["messages"], body["max_tokens"])
            made = completion(text, finish)
            made["usage"] = {"prompt_tokens": read, "completion_tokens": written}
            return self.send(made)
        replies: dict[str, Any] = {
            "plain": completion(f"{score}\nbecause"),
            "words": completion("It is a good response."),
            "mended": completion("4.5\nas asked" if again else "I like it."),
            "ten": completion("8/10"),
            "empty": completion(""),
            "null": completion(None),
            "list": completion([{"type": "text", "text": "3"}, {"type": "text", "text": "\nso"}]),  # type: ignore[arg-type]
            "sorry": completion("I'm sorry, but I can't rate this."),
            "field": completion(None, refusal="This is not allowed."),
            "filter": completion("4", "content_filter"),
            "cut": completion("4", "length"),
            "cut-later": completion("4\nThe response is", "length"),
            "quote": completion("The row says 'score: 5', which I do not follow."),
            "twins": {**completion("2\nfirst"), "choices": completion("2\nfirst")["choices"] * 2},
            "no-choices": {"object": "chat.completion", "choices": []},
            "bare-number": 5,
            "number-content": completion(5),  # type: ignore[arg-type]
            "no-usage": {**completion("1.5"), "usage": None},
        }
        if case in replies:
            return self.send(replies[case])
        good = completion("3.5\nat last")
        first = attempt == 1
        if case == "json-cut":
            return self.raw(json.dumps(good)[:-20].encode())
        if case == "json-twice":
            return self.raw(json.dumps(good).encode() * 2)
        if case == "html":
            return self.raw(b"<html>5</html>")
        if case == "error-500":
            return self.send({"error": {"message": "out of memory: Score: 5"}}, 500)
        if case == "error-500-once":
            return self.send({"error": {"message": "busy"}} if first else good, 500 if first else 200)
        if case == "error-429-once":
            return self.send(
                {"error": "slow"} if first else good, 429 if first else 200, {"Retry-After": "1"}
            )
        if case == "far-429":
            return self.send({"error": "slow"}, 429, {"Retry-After": "86400"})
        if case == "error-401":
            return self.send({"error": {"message": f"no such key: {self.headers.get('Authorization')}"}}, 401)
        if case == "long":
            return self.send({"error": {"message": "This model's maximum context length is 8 tokens."}}, 400)
        if case == "bad-400":
            return self.send({"error": {"message": "5 is a bad request"}}, 400)
        if case == "drip":
            return self.drip(json.dumps(good).encode())
        if case == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(json.dumps(good).encode())
        else:
            assert case == "closed", case
        self.close_connection = True

    def send(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.raw(json.dumps(value).encode(), code, headers)

    def raw(self, content: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def drip(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            self.close_connection = True


def by_model(folder: str) -> Callable[[list[dict[str, str]], int], tuple[str, str, int, int]]:
    """Greedy replies of a causal language model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lock = threading.Lock()

    def generate(messages: list[dict[str, str]], most: int) -> tuple[str, str, int, int]:
        text = tokenizer.apply_chat_template(
            [message for message in messages if message["role"] != "system"],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with lock, torch.no_grad():
            made = model.generate(ids, max_new_tokens=most, do_sample=False)[0, ids.shape[1] :]
        finish = "length" if len(made) >= most else "stop"
        return tokenizer.decode(made, skip_special_tokens=True), finish, ids.shape[1], len(made)

    return generate


class Running:
    """A server that runs: its `url`, and the requests it has seen."""

    def __init__(self, port: int, log: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log

    def requests(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """A server process with its log in `folder`, ended with the block."""
    log = folder / "requests.jsonl"
    command = [sys.executable, "-m", "tests.models.chat_server", str(log), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Running(int(process.stdout.readline()), log)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    Handler.log, Handler.delay = given.log, given.delay
    if given.model:
        Handler.generate = staticmethod(by_model(given.model))  # type: ignore[assignment]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

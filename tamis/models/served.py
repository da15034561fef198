"""A model behind an OpenAI-compatible server: many chat requests at once, politely; no reply is made up.

Requests run `concurrency` at a time, at most `per_minute`. What may pass (429, 408, 409, 5xx, time-outs, lost
connections, replies that are no chat completion) is tried again after a pause that doubles, with jitter; a
`Retry-After` holds back all requests. What cannot pass (an unknown key, model or path) stops the run, and so
does a server that has stopped to answer. The key is read from an environment variable when a run begins; it
is in no file, message or recipe.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tamis.core.errors import RequestError, RunError
from tamis.core.extras import need
from tamis.models._spending import Begun, Spending

Body = Mapping[str, Any]
_AGAIN = (408, 409, 425, 429)
_WRONG = {401: "the key", 403: "the key", 404: "the URL or the model's name", 405: "the URL"}
_LONGEST_PAUSE_S = 60.0
_LONGEST_WAIT_S = 600.0
_MOST_BYTES = 8 << 20
_EXCERPT = 200
_SLICE_S = 0.2


@dataclass(frozen=True)
class Server:
    """Where requests go and how. `url`: up to and with /v1. `key_env`: name of the variable that holds the
    key; without such a variable none is sent. `deadline_s`: of one attempt, from its start to the last byte
    of the reply. `retries`: further attempts; `pause_s`: before the first of them."""

    url: str
    key_env: str
    concurrency: int = 8
    per_minute: float | None = None
    deadline_s: float = 120.0
    retries: int = 5
    pause_s: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={self.shown!r}: expected http(s)://host[:port]/v1")
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency}: expected at least 1")
        if self.per_minute is not None and self.per_minute <= 0:
            raise ValueError(f"per_minute={self.per_minute}: expected a number above 0")
        if self.retries < 0 or self.deadline_s <= 0 or self.pause_s < 0:
            raise ValueError("retries and pause_s must be 0 or more, deadline_s above 0")

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@dataclass(frozen=True)
class Reply:
    """What a server said. `finish`: its word for why it stopped ("stop", "length", "content_filter", …);
    `refusal`: its text of a refusal; tokens as the server counts them, None where it does not."""

    text: str
    finish: str = ""
    refusal: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Failure:
    """No reply. `status`: `failed`, `too_long` or `refused`; `reason`: what server or network said."""

    status: str
    reason: str


Got = Callable[[int, "Reply | Failure"], "Body | None"]
"""Called with the number of a request and what came of it, as it comes; may give another request to make."""


class _Again(Exception):
    """An attempt that may go better later; `after`: seconds that the server asked for."""

    def __init__(self, reason: str, after: float = 0.0, billed: bool = False) -> None:
        super().__init__(reason)
        self.after, self.billed = after, billed


class Client:
    """Makes chat requests; `spending` counts and limits them."""

    def __init__(self, server: Server, spending: Spending | None = None) -> None:
        self.server = server
        self.spending = spending or Spending()
        self._http = need("httpx2", extra="judge")
        self._random = random.Random(server.seed)
        self._resume = self._next = 0.0
        self._lost = 0
        self._stop: RunError | None = None
        self._key = ""

    def ask(self, bodies: Sequence[Body], got: Got) -> None:
        """Make all requests and those that `got` asks for besides. Raises RunError when a limit is reached,
        key or model are not taken, or the server has gone; replies on their way are waited for first."""
        self._key = os.environ.get(self.server.key_env, "")
        self._stop, self._lost = None, 0
        _run(self._all(bodies, got))
        if self._stop is not None:
            raise self._stop

    async def _all(self, bodies: Sequence[Body], got: Got) -> None:
        waiting = deque(enumerate(bodies))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        workers = min(self.server.concurrency, len(bodies))
        limits = self._http.Limits(max_connections=workers, max_keepalive_connections=workers)
        timeout = self._http.Timeout(self.server.deadline_s)
        async with self._http.AsyncClient(headers=headers, limits=limits, timeout=timeout) as http:

            async def work() -> None:
                while waiting and self._stop is None:
                    number, body = waiting.popleft()
                    following: Body | None = body
                    while following is not None and self._stop is None:
                        answer = await self._answer(http, following)
                        following = None if answer is None else got(number, answer)

            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())

    async def _answer(self, http: Any, body: Body) -> Reply | Failure | None:
        """A reply or a failure after all attempts; None when the run is to stop."""
        reason = ""
        for attempt in range(self.server.retries + 1):
            if attempt:
                pause = min(self.server.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
                await self._wait(pause * self._random.uniform(0.5, 1.0))
            await self._turn()
            begun = await self._begun(body)
            if begun is None:
                return None
            try:
                answer = await self._attempt(http, body)
            except _Again as error:
                self.spending.end(begun, None, billed=error.billed)
                reason = str(error)
                if error.after > _LONGEST_WAIT_S:
                    self._stop = RunError(
                        f"{self.server.shown}: asks to wait {error.after:,.0f} s; what was answered is kept, "
                        "and the same command asks the rest"
                    )
                    return None
                self._resume = max(self._resume, time.monotonic() + error.after)
            except RunError as error:
                self.spending.end(begun, None, billed=False)
                self._stop = error
                return None
            else:
                self.spending.end(begun, answer if isinstance(answer, Reply) else None, billed=False)
                self._lost = 0
                return answer
        return self._given_up(f"{reason}; {self.server.retries + 1} attempts")

    def _given_up(self, reason: str) -> Failure:
        self._lost += 1
        if self._lost >= max(10, 2 * self.server.concurrency):
            self._stop = self._stop or RunError(
                f"{self.server.shown}: {self._lost} requests in a row had no reply, the last: {reason}. What "
                "was answered is kept; the same command asks the rest"
            )
        return Failure("failed", reason)

    async def _begun(self, body: Body) -> Begun | None:
        """Count a request that is about to be made; None when the run is to stop."""
        while self._stop is None:
            try:
                begun = self.spending.begin(body)
            except RunError as error:
                self._stop = error
                break
            if begun is not None:
                return begun
            await self._wait(_SLICE_S)
        return None

    async def _wait(self, seconds: float) -> None:
        """Sleep, but not on after the run is to stop."""
        end = time.monotonic() + seconds
        while self._stop is None and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _SLICE_S))

    async def _turn(self) -> None:
        """Wait until a request may begin: after a `Retry-After`, and not more than `per_minute`."""
        while self._stop is None:
            now = time.monotonic()
            wait = max(self._resume, self._next) - now
            if wait <= 0:
                if self.server.per_minute is not None:
                    self._next = now + 60.0 / self.server.per_minute
                return
            await self._wait(wait)

    async def _attempt(self, http: Any, body: Body) -> Reply | Failure:
        url = self.server.url.rstrip("/") + "/chat/completions"
        try:
            async with (
                asyncio.timeout(self.server.deadline_s),
                http.stream("POST", url, json=dict(body)) as response,
            ):
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise _Again(f"a reply of more than {_MOST_BYTES:,} bytes", billed=True)
                return self._read(response, bytes(content))
        except TimeoutError:
            raise _Again(f"no whole reply within {self.server.deadline_s:g} s", billed=True) from None
        except self._http.TimeoutException as error:
            raise _Again(f"timed out ({type(error).__name__})", billed=True) from None
        except (self._http.TransportError, self._http.DecodingError) as error:
            raise _Again(self._clean(f"{type(error).__name__}: {error}")) from None

    def _read(self, response: Any, content: bytes) -> Reply | Failure:
        code = response.status_code
        if code == 200:
            try:
                return read_completion(content)
            except ValueError as error:
                raise _Again(self._clean(f"the reply is no chat completion: {error}"), billed=True) from None
        said = self._clean(_message(content))
        if code in _AGAIN or code >= 500:
            raise _Again(f"HTTP {code}: {said}", _retry_after(response.headers.get("retry-after")))
        if code in _WRONG:
            raise RunError(
                f"{self.server.shown}: HTTP {code}: {said}; look at {_WRONG[code]} (the key is read from the "
                f"variable {self.server.key_env}, which is {'set' if self._key else 'not set'})"
            )
        low = _message(content, whole=True).lower()
        if "context_length_exceeded" in low or "maximum context length" in low:
            return Failure("too_long", f"HTTP {code}: {said}")
        if "content_filter" in low or "content_policy" in low:
            return Failure("refused", f"HTTP {code}: {said}")
        if 300 <= code < 400:
            raise RunError(f"{self.server.shown}: HTTP {code}: it sends elsewhere; give that URL instead")
        return Failure("failed", f"HTTP {code}: {said}")

    def _clean(self, text: str) -> str:
        """Without the key, should a server or a library repeat it; on one line and short."""
        shown = " ".join(text.split())
        return (shown.replace(self._key, "[key]") if self._key else shown)[:_EXCERPT]


def read_completion(content: bytes) -> Reply:
    """The first choice of a chat completion's body; raises ValueError where there is none."""
    made = json.loads(content)
    choices = made.get("choices") if isinstance(made, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"no choices in {content[:_EXCERPT]!r}")
    first = choices[0]
    message = first.get("message")
    if not isinstance(message, dict):
        raise ValueError(f"no message in {content[:_EXCERPT]!r}")
    text = message.get("content")
    if isinstance(text, list):
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if text is not None and not isinstance(text, str):
        raise ValueError(f"content is {type(text).__name__}, not text")
    given = made.get("usage")
    usage: dict[str, Any] = given if isinstance(given, dict) else {}
    refusal, finish, model = message.get("refusal"), first.get("finish_reason"), made.get("model")
    return Reply(
        text or "",
        finish if isinstance(finish, str) else "",
        refusal if isinstance(refusal, str) else "",
        model if isinstance(model, str) else "",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def check_key(server: Server, asked: bool) -> None:
    """Raise RequestError where a variable was named for the key (`asked`) and is not set."""
    if asked and not os.environ.get(server.key_env):
        raise RequestError(f"the variable {server.key_env} should hold the key and is not set: export it")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _message(content: bytes, whole: bool = False) -> str:
    """The text of an error's body: the message of the usual form, or what is there."""
    text = content[:20000].decode("utf-8", "replace")
    if whole:
        return text
    try:
        error = json.loads(text).get("error")
        return str(error.get("message") if isinstance(error, dict) else error or text)
    except (ValueError, AttributeError):
        return text


def _retry_after(value: str | None) -> float:
    """Seconds of a `Retry-After`, given in seconds or as a date; 0 for none or one that cannot be read."""
    if value is None:
        return 0.0
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _grouped(work)
        return
    raised: list[BaseException] = []

    def apart() -> None:
        try:
            _grouped(work)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=apart)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _grouped(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except BaseExceptionGroup as group:  # one task's fault is the fault
        raise group.exceptions[0] from None

"""A fake agent that calls a model for real: one request to the endpoint that its environment names, with the CLI's own retries.

claude speaks Anthropic's messages to ANTHROPIC_BASE_URL, codex OpenAI's chat completions to OPENAI_BASE_URL. It is for fleets
against a fake provider: 429s, pauses and concurrency are then real. No stream, no tools.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from urllib.parse import urlsplit

from sennit.testing.fakeagent_steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 600.0
DELAY_S = 0.05  # the first of claude's is 1 s; a test has no time for that


def call(steps: Steps, step: dict[str, Any]) -> dict[str, Any]:
    """Call the model and say what it answers; return what the transcript keeps.

    Raises:
        Ended: it refused once more than the environment allows.
    """
    body = {"model": steps.run.shape.model, "max_tokens": int(step.get("max_tokens", 64))}
    body["messages"] = [{"role": "user", "content": str(step.get("text", "hello"))}]
    attempt = 0
    while True:
        status, answer = _ask(body)
        if status == 200:
            break
        attempt += 1
        words = str((answer.get("error") or {}).get("message", "")) if isinstance(answer.get("error"), dict) else ""
        if attempt > steps.run.shape.retries_max() or status in {400, 401, 403, 404}:
            steps.give_up(status, words)
        delay_s = float(step.get("delay_s", DELAY_S)) * attempt
        steps.run.shape.retry(attempt, delay_s, status)
        # sleep: between tries, as the real ones do
        time.sleep(delay_s)
    return steps.answered(*_read(answer))


def _ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send one request; 0 and nothing if there is no connection."""
    openai = os.environ.get("OPENAI_BASE_URL", "")
    base = urlsplit(openai or os.environ["ANTHROPIC_BASE_URL"])
    path = base.path.rstrip("/") + ("/chat/completions" if openai else "/v1/messages")
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    if openai:
        headers["authorization"] = f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"
    else:
        headers["x-api-key"] = os.environ.get("ANTHROPIC_API_KEY", "")
    connection = http.client.HTTPConnection(base.hostname or "127.0.0.1", base.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data)
    except (OSError, http.client.HTTPException, ValueError):
        return 503, {}
    finally:
        connection.close()


def _read(answer: dict[str, Any]) -> tuple[str, int, int]:
    """Return text, input tokens and output tokens of either form."""
    usage = answer.get("usage", {})
    if "choices" in answer:
        return (
            answer["choices"][0]["message"]["content"] or "",
            usage.get("prompt_tokens", 0),
            usage.get("completion_tokens", 0),
        )
    text = "".join(part.get("text", "") for part in answer["content"])
    return text, usage.get("input_tokens", 0), usage.get("output_tokens", 0)

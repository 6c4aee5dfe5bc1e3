"""What LiteLLM makes of a provider: `python litellm_program.py URL` prints one JSON object of facts per model.

A process of its own, because LiteLLM leaves an event loop and sockets open at its end, which pytest takes for ours.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from typing import Any

import litellm
import litellm.exceptions

ASKED = [{"role": "user", "content": "Where are the hands?"}]


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def configure(url: str, **knobs: object) -> None:
    client = http.client.HTTPConnection(url.removeprefix("http://"))
    client.request("POST", "/control/configure", json.dumps(knobs))
    assert client.getresponse().status == 200
    client.close()


def facts(url: str, **call: Any) -> dict[str, object]:
    call |= {"api_key": "any", "messages": ASKED, "max_retries": 0}
    configure(url, rpm=0)
    answer = litellm.completion(**call)
    told = {
        "text": answer.choices[0].message.content,
        "tokens": answer.usage.total_tokens,
        "streamed": text_of(litellm.completion(**call, stream=True)),
        "async": asyncio.run(litellm.acompletion(**call)).choices[0].message.content,
        "error": "",
    }
    configure(url, rpm=1)
    litellm.completion(**call)
    try:
        litellm.completion(**call)
    except litellm.exceptions.RateLimitError as error:
        told["error"] = f"{type(error).__name__} {error.status_code}"
    return told


if __name__ == "__main__":
    url = sys.argv[1]
    told = {
        "openai": facts(url, model="openai/gpt", api_base=f"{url}/v1"),
        "anthropic": facts(url, model="anthropic/claude", api_base=url),
    }
    sys.stdout.write(json.dumps(told) + "\n")

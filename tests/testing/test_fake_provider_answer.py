"""A fake provider that is told what to answer: one text for all, or a function of each request."""

from __future__ import annotations

from typing import Any

import pytest

from sennit.errors import UsageError
from sennit.testing.provider import FakeProvider
from tests.testing.provider_wire import CHAT, MESSAGES, post


def last_word(request: dict[str, Any]) -> str:
    return f"You said:\n\n{request['messages'][-1]['content']}"


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"] if "choices" in answer else answer["content"][0]["text"])


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_function_makes_each_answer_from_its_request(path: str) -> None:
    with FakeProvider(answer=last_word) as provider:
        answers = [
            post(provider.url, path, messages=[{"role": "user", "content": said}]).json() for said in ("Aye.", "Nay.")
        ]

    assert [text_of(answer) for answer in answers] == ["You said:\n\nAye.", "You said:\n\nNay."]
    assert provider.statistics().output_tokens == 2 * 3


def test_a_text_is_answered_as_it_was_written() -> None:
    with FakeProvider(answer="- one\n- two, 90\N{NO-BREAK SPACE}% of it") as provider:
        answer = post(provider.url).json()

    assert text_of(answer) == "- one\n- two, 90\N{NO-BREAK SPACE}% of it"


def test_a_function_that_raises_is_told_to_the_client_as_500_and_the_next_call_is_served() -> None:
    with FakeProvider(answer=lambda request: request["nothing"] if request["model"] == "m" else "Aye.") as provider:
        wrong, right = post(provider.url), post(provider.url, model="n")

    assert wrong.status_code == 500
    assert "KeyError: 'nothing'" in wrong.json()["error"]["message"]
    assert text_of(right.json()) == "Aye."


def test_a_function_cannot_go_to_another_process() -> None:
    with pytest.raises(UsageError, match="cannot call answer="):
        FakeProvider(process=True, answer=last_word)

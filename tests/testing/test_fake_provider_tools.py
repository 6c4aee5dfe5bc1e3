"""The fake provider's model calls tools, and the real clients take each call for one of the real model."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest
from anthropic.types import Message, ToolUseBlock
from openai.types.responses import Response, ResponseFunctionToolCall

from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import Said, ToolCall, split

LOOK = ToolCall("look", {"at": "the hands", "times": 2})
RUN = ToolCall("run", {}, "call-7")


@pytest.fixture(params=["after a text", "alone"])
def provider(request: pytest.FixtureRequest) -> Iterator[FakeProvider]:
    said: Said = [LOOK, RUN] if request.param == "alone" else ["Let me see.", LOOK, RUN]
    with FakeProvider(answer=lambda _: said) as provider:
        yield provider


@pytest.fixture
def gpt(provider: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(provider: FakeProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_messages_bring_tool_use_blocks(*, claude: anthropic.Anthropic, streamed: bool) -> None:
    if streamed:
        with claude.messages.stream(
            model="c", max_tokens=99, messages=[{"role": "user", "content": "Look."}]
        ) as stream:
            answer: Message = stream.get_final_message()
    else:
        answer = claude.messages.create(model="c", max_tokens=99, messages=[{"role": "user", "content": "Look."}])

    uses = [block for block in answer.content if isinstance(block, ToolUseBlock)]
    assert [(use.name, use.input) for use in uses] == [("look", LOOK.input), ("run", {})]
    assert uses[0].id.startswith("toolu_")
    assert uses[1].id == "call-7"
    assert answer.stop_reason == "tool_use"
    assert len(answer.content) in {2, 3}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_responses_bring_function_calls(*, gpt: openai.OpenAI, streamed: bool) -> None:
    if streamed:
        with gpt.responses.stream(model="gpt", input="Look.") as stream:
            answer: Response = stream.get_final_response()
    else:
        answer = gpt.responses.create(model="gpt", input="Look.")

    calls = [item for item in answer.output if isinstance(item, ResponseFunctionToolCall)]
    assert [(call.name, call.arguments) for call in calls] == [("look", '{"at":"the hands","times":2}'), ("run", "{}")]
    assert calls[1].call_id == "call-7"
    assert answer.status == "completed"
    assert answer.output_text in {"", "Let me see."}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_chat_brings_tool_calls(*, gpt: openai.OpenAI, streamed: bool) -> None:
    if streamed:
        with gpt.chat.completions.stream(model="gpt", messages=[{"role": "user", "content": "Look."}]) as stream:
            answer = stream.get_final_completion()
        calls = [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls or []]
        reason = answer.choices[0].finish_reason
    else:
        whole = gpt.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "Look."}])
        calls = [
            (call.function.name, call.function.arguments)
            for call in whole.choices[0].message.tool_calls or []
            if call.type == "function"
        ]
        reason = whole.choices[0].finish_reason

    assert calls == [("look", '{"at":"the hands","times":2}'), ("run", "{}")]
    assert reason == "tool_calls"


def test_what_is_said_is_split_into_text_and_tools() -> None:
    assert split("Aye.") == ("Aye.", ())
    assert split(["Aye. ", LOOK, "Nay."]) == ("Aye. Nay.", (LOOK,))

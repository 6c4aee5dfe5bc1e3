"""The real clients of OpenAI and Anthropic, sync and async, take every answer of the fake provider for one of the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from sennit.testing.provider import FakeProvider, Fault

TEXT = "All hands are on deck."
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where are the hands?"}]


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(answer=TEXT, input_tokens=7) as provider:
        yield provider


@pytest.fixture
def gpt(provider: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(provider: FakeProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.url, api_key="any", max_retries=0) as client:
        yield client


# ---------------------------------------------------------------- OpenAI


def test_chat_answers_with_text_and_usage(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt", messages=ASKED)

    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "gpt"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)


def test_chat_streams_and_says_the_usage_only_when_asked(gpt: openai.OpenAI) -> None:
    with gpt.chat.completions.create(model="gpt", messages=ASKED, stream=True) as stream:
        plain = list(stream)
    with gpt.chat.completions.create(
        model="gpt", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        told = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == TEXT
    assert all(chunk.usage is None for chunk in plain)
    assert told[-1].choices == []
    assert told[-1].usage is not None
    assert told[-1].usage.total_tokens == 12


def test_the_stream_helper_of_chat_puts_the_answer_together(gpt: openai.OpenAI) -> None:
    with gpt.chat.completions.stream(model="gpt", messages=ASKED) as stream:
        answer = stream.get_final_completion()

    assert answer.choices[0].message.content == TEXT


def test_an_answer_is_cut_where_the_request_allows_no_more(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    chat = gpt.chat.completions.create(model="gpt", messages=ASKED, max_completion_tokens=2)
    response = gpt.responses.create(model="gpt", input="Where?", max_output_tokens=2)
    message = claude.messages.create(model="claude", max_tokens=2, messages=[{"role": "user", "content": "Where?"}])

    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("All hands", "length")
    assert (response.output_text, response.status) == ("All hands", "incomplete")
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 2


def test_responses_answer_and_stream(gpt: openai.OpenAI) -> None:
    answer = gpt.responses.create(model="gpt", input="Where are the hands?")
    with gpt.responses.stream(model="gpt", input="Where are the hands?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()

    assert (answer.output_text, final.output_text) == (TEXT, TEXT)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 5
    assert kinds[-1] == "response.completed"


def test_the_async_client_of_openai_does_all_of_it_too(provider: FakeProvider) -> None:
    async def ask() -> tuple[str | None, str, str]:
        async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as client:
            answer = await client.chat.completions.create(model="gpt", messages=ASKED)
            stream = await client.chat.completions.create(model="gpt", messages=ASKED, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            response = await client.responses.create(model="gpt", input="Where?")
            return answer.choices[0].message.content, streamed, response.output_text

    assert asyncio.run(ask()) == (TEXT, TEXT, TEXT)


# ---------------------------------------------------------------- Anthropic


def test_messages_answer_with_text_and_usage(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="claude", max_tokens=50, messages=[{"role": "user", "content": "Where?"}])

    assert message.content[0].type == "text"
    assert message.content[0].text == TEXT
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 5)


def test_messages_stream_with_the_usage_at_both_ends(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model="claude", max_tokens=50, messages=[{"role": "user", "content": "Where?"}]
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == TEXT
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 5)


def test_the_async_client_of_anthropic_does_all_of_it_too(provider: FakeProvider) -> None:
    async def ask() -> tuple[int, str]:
        async with anthropic.AsyncAnthropic(base_url=provider.url, api_key="any", max_retries=0) as client:
            answer = await client.messages.create(
                model="claude", max_tokens=50, messages=[{"role": "user", "content": "Where?"}]
            )
            async with client.messages.stream(
                model="claude", max_tokens=50, messages=[{"role": "user", "content": "Where?"}]
            ) as stream:
                return answer.usage.output_tokens, await stream.get_final_text()

    assert asyncio.run(ask()) == (5, TEXT)


def test_both_list_the_models(gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: FakeProvider) -> None:
    provider.configure(models=("small", "large"))

    assert [model.id for model in gpt.models.list()] == ["small", "large"]
    assert [model.id for model in claude.models.list()] == ["small", "large"]
    assert gpt.models.retrieve("small").id == "small"


# ---------------------------------------------------------------- errors

OPENAI_ERRORS: list[tuple[Fault, type[openai.APIStatusError]]] = [
    ("status_400", openai.BadRequestError),
    ("status_401", openai.AuthenticationError),
    ("status_403", openai.PermissionDeniedError),
    ("status_404", openai.NotFoundError),
    ("status_408", openai.APIStatusError),
    ("status_413", openai.APIStatusError),
    ("status_429", openai.RateLimitError),
    ("status_500", openai.InternalServerError),
    ("status_502", openai.InternalServerError),
    ("status_503", openai.InternalServerError),
    ("status_504", openai.InternalServerError),
    ("status_529", openai.InternalServerError),
]
ANTHROPIC_ERRORS: list[tuple[Fault, type[anthropic.APIStatusError], str]] = [
    ("status_400", anthropic.BadRequestError, "invalid_request_error"),
    ("status_401", anthropic.AuthenticationError, "authentication_error"),
    ("status_403", anthropic.PermissionDeniedError, "permission_error"),
    ("status_404", anthropic.NotFoundError, "not_found_error"),
    ("status_413", anthropic.APIStatusError, "request_too_large"),
    ("status_429", anthropic.RateLimitError, "rate_limit_error"),
    ("status_500", anthropic.InternalServerError, "api_error"),
    ("status_529", anthropic.APIStatusError, "overloaded_error"),
]


@pytest.mark.parametrize(("fault", "error"), OPENAI_ERRORS)
def test_each_status_is_the_error_that_openai_makes_of_it(
    provider: FakeProvider, gpt: openai.OpenAI, fault: Fault, error: type[openai.APIStatusError]
) -> None:
    provider.inject(fault)

    with pytest.raises(error) as caught:
        gpt.chat.completions.create(model="gpt", messages=ASKED)

    assert fault == f"status_{caught.value.status_code}"
    assert provider.statistics().by_status == {caught.value.status_code: 1}


@pytest.mark.parametrize(("fault", "error", "kind"), ANTHROPIC_ERRORS)
def test_each_status_is_the_error_that_anthropic_makes_of_it(
    provider: FakeProvider, claude: anthropic.Anthropic, fault: Fault, error: type[anthropic.APIStatusError], kind: str
) -> None:
    provider.inject(fault)

    with pytest.raises(error) as caught:
        claude.messages.create(model="claude", max_tokens=5, messages=[{"role": "user", "content": "Where?"}])

    assert fault == f"status_{caught.value.status_code}"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == kind


def test_a_hang_is_a_timeout_of_both(provider: FakeProvider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    provider.inject("hang_before_headers")
    with pytest.raises(openai.APITimeoutError):
        gpt.with_options(timeout=0.2).chat.completions.create(model="gpt", messages=ASKED)
    provider.inject("hang_after_headers")
    with pytest.raises(anthropic.APITimeoutError):
        claude.with_options(timeout=0.2).messages.create(
            model="claude", max_tokens=5, messages=[{"role": "user", "content": "Where?"}]
        )

    assert provider.wait_for(idle=True).by_status == {499: 2}


def test_the_clients_retry_what_the_provider_recovers_from(provider: FakeProvider) -> None:
    provider.configure(retry_after="ms", overload_retry_after_s=0.01)
    provider.inject("status_503", 2)

    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=2) as client:
        answer = client.chat.completions.create(model="gpt", messages=ASKED)

    assert answer.choices[0].message.content == TEXT
    assert provider.statistics().by_status == {503: 2, 200: 1}


def test_an_error_in_a_stream_reaches_both(
    provider: FakeProvider, gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    provider.inject("stream_error", 3)
    with pytest.raises(openai.APIError, match="error while processing"):
        list(gpt.chat.completions.create(model="gpt", messages=ASKED, stream=True))
    last = list(gpt.responses.create(model="gpt", input="Where?", stream=True))[-1]
    assert last.type == "error"  # the SDK hands it on as an event
    with (
        pytest.raises(anthropic.APIStatusError, match="Overloaded"),
        claude.messages.stream(
            model="claude", max_tokens=5, messages=[{"role": "user", "content": "Where?"}]
        ) as stream,
    ):
        stream.until_done()

    assert provider.statistics().ok == 0


def test_a_truncated_stream_is_a_broken_connection(provider: FakeProvider, gpt: openai.OpenAI) -> None:
    provider.inject("truncate")

    seen: list[str | None] = []
    with (
        pytest.raises(openai.APIConnectionError),
        gpt.chat.completions.create(model="gpt", messages=ASKED, stream=True) as stream,
    ):
        seen.extend(chunk.choices[0].delta.content for chunk in stream)

    assert seen == ["", "All ", "hands "]
    assert (provider.statistics().ok, provider.statistics().by_status) == (0, {200: 1})


def test_a_wrong_key_is_refused(provider: FakeProvider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    provider.configure(api_key="right")

    with pytest.raises(openai.AuthenticationError):
        gpt.chat.completions.create(model="gpt", messages=ASKED)
    with pytest.raises(openai.AuthenticationError):
        gpt.models.list()
    with pytest.raises(anthropic.AuthenticationError):
        claude.messages.create(model="claude", max_tokens=5, messages=[{"role": "user", "content": "Where?"}])
    assert gpt.with_options(api_key="right").chat.completions.create(model="gpt", messages=ASKED).id


def test_what_the_real_ones_refuse_is_refused(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        gpt.chat.completions.create(model="gpt", messages=[])
    with pytest.raises(openai.BadRequestError, match="model"):
        gpt.responses.create(model="", input="Where?")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        claude.messages.create(model="claude", max_tokens=0, messages=[{"role": "user", "content": "Where?"}])

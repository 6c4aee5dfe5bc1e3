"""LiteLLM, which many frameworks call models with, takes the fake provider for OpenAI and for Anthropic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sennit
from sennit.testing.provider import FakeProvider

PROGRAM = Path(__file__).parent / "litellm_program.py"
TEXT = "All hands are on deck."


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_litellm_completes_streams_and_knows_a_used_up_minute() -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(sennit.__path__[0]).parent),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it fetches its price table when it is imported
    }
    with FakeProvider(answer=TEXT, input_tokens=7) as provider:
        told = subprocess.run(
            [sys.executable, str(PROGRAM), provider.url], env=env, check=True, capture_output=True, text=True
        )

        refused = provider.statistics().refused

    right = {"text": TEXT, "tokens": 12, "streamed": TEXT, "async": TEXT, "error": "RateLimitError 429"}
    assert json.loads(told.stdout.splitlines()[-1]) == {"openai": right, "anthropic": right}
    assert refused == {"minute": 2}

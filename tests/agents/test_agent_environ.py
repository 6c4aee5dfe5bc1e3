"""What of our environment an agent sees, and what of it is a secret."""

from __future__ import annotations

from sennit.execute.agent_environ import environment, secrets_in

OURS = {
    "PATH": "/bin",
    "HOME": "/somewhere",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "AWS_SECRET_ACCESS_KEY": "cloud",
    "DATABASE_URL": "postgresql://me:pass@db/x",
    "ANTHROPIC_API_KEY": "sk-ant-1",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1",
    "SSH_AUTH_SOCK": "/run/agent",
    "PWD": "/elsewhere",
}


def test_nothing_passes_that_is_not_usual_or_named() -> None:
    assert environment(OURS, passes=(), added={}) == {
        "PATH": "/bin",
        "HOME": "/somewhere",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
    }


def test_names_and_prefixes_pass_and_what_is_added_wins() -> None:
    given = environment(OURS, passes=["ANTHROPIC_*", "SSH_AUTH_SOCK"], added={"HOME": "/its", "NEW": "1"})

    assert set(given) == {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "SSH_AUTH_SOCK",
        "NEW",
    }
    assert given["HOME"] == "/its"


def test_without_a_path_there_is_a_usual_one() -> None:
    assert environment({}, passes=(), added={})["PATH"]


def test_secrets_are_what_is_named_what_its_name_tells_and_passwords_of_proxies() -> None:
    environ = {
        "ANTHROPIC_API_KEY": "sk-ant-1",
        "GH_TOKEN": "ghp_1",
        "MY_COOKIE": "crumbs",
        "PLAIN": "text",
        "EMPTY_TOKEN": "",
        "https_proxy": "http://me:p%40ss@proxy:80",
        "HTTP_PROXY": "http://[broken",
    }

    assert set(secrets_in(environ, ["MY_*"])) == {"sk-ant-1", "ghp_1", "crumbs", "p%40ss", "p@ss"}

"""docs/reference/mcp.md names every tool and argument; run as a program it writes the table: `python -m tests.mcp.test_mcp_reference`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sennit.integrations.mcp.arguments import TOOLS, Arguments, description, input_schema

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "mcp.md"
_BETWEEN = re.compile(r"(<!-- tools: [^\n]* -->\n)(.*?)(<!-- tools end -->)", re.DOTALL)


def kind_of(schema: dict[str, Any]) -> str:
    """Return what a value may be, in few words."""
    if "anyOf" in schema:
        return " or ".join(kind_of(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}"
    return str(schema.get("type", "JSON"))


def about(schema: dict[str, Any]) -> str:
    """Return what is said of an argument, wherever in its schema that stands."""
    places = [schema, *schema.get("anyOf", [])]
    said = next((place["description"] for place in places if "description" in place), "")
    default = schema.get("default")
    shown = "" if default in (None, "", [], False) else f" Default: {default}."
    return f"{said}{shown}".strip()


def row(name: str, kind: type[Arguments]) -> str:
    schema = input_schema(kind)
    required = schema.get("required", [])
    arguments = []
    for argument, its in schema["properties"].items():
        if argument == "claim":
            arguments.append("**`claim`**" if argument in required else "`claim`")
            continue
        shown = f"**`{argument}`**" if argument in required else f"`{argument}`"
        arguments.append(f"{shown} ({kind_of(its)}) {about(its)}".strip())
    text = " ".join(description(kind).split())
    return f"| `{name}` | {'<br>'.join(arguments) or 'none'} | {text} |".replace("\n", " ")


def drawn() -> str:
    rows = [row(name, kind) for name, kind in TOOLS.items()]
    return "\n".join(["| tool | arguments | what it does |", "|---|---|---|", *rows]) + "\n"


def test_the_table_of_tools_is_current() -> None:
    found = _BETWEEN.search(PAGE.read_text(encoding="utf-8"))

    assert found is not None
    assert found[2] == drawn(), "run: python -m tests.mcp.test_mcp_reference"


def test_every_tool_has_a_schema_that_clients_take() -> None:
    for name, kind in TOOLS.items():
        schema = input_schema(kind)
        assert schema["type"] == "object", name
        assert "$ref" not in str(schema), name
        assert len(description(kind)) > 40, name


if __name__ == "__main__":
    PAGE.write_text(
        _BETWEEN.sub(lambda m: m[1] + drawn() + m[3], PAGE.read_text(encoding="utf-8")),
        encoding="utf-8",
    )

"""A door for agents of any kind: an MCP server over the store, by stdio or streamable HTTP. Needs the extra `mcp`.

    client ─► stdio | http ─► server ─► tools ─► desk ─► store        clients.py  what one client may do at once
                                │         └────► questions, paths     orders.py   one standing order per waiting call
                                └─► resources                         desk.py     claims, each on its own lease

`desk`, `orders`, `clients` and `questions` know nothing of MCP; only `server`, `stdio` and `http` import the SDK.
"""

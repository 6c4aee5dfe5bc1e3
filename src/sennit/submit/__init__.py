"""1. It is handed in: handlers and their types, the client, the handle, and what a body may call."""

"""`taskorch http`: the board, its events, the REST API and MCP on one port of this machine."""

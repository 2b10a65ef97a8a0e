"""What a call means and what it answers, whoever makes it: an MCP client or a person at a terminal."""

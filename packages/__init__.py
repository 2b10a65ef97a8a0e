"""What taskorch is handed out as: wheel, sdist, an MCPB bundle, and its entry for the MCP registry."""

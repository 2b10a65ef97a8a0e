"""The MCP side: tools, resources, prompts, and what they answer."""

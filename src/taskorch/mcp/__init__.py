"""The MCP side: tools, resources and prompts as hosts and models see them."""

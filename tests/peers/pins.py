"""The peers and their versions, pinned here and nowhere else."""

from dataclasses import dataclass

LEGACY, MODERN = "2025-11-25", "2026-07-28"
ERAS = {"legacy": LEGACY, "auto": MODERN}  # what a peer is asked for, and what it must then have negotiated


@dataclass(frozen=True)
class Peer:
    """A client, by what installs it; its program is `with_<name>`."""

    name: str
    packages: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("auto",)
    npm: bool = False
    suffix: str = ".py"

    @property
    def program(self) -> str:
        return f"with_{self.name.replace('-', '_')}{self.suffix}"


PEERS = (
    Peer("sdk", modes=("legacy", "auto")),  # the one that taskorch is built on, in its own environment
    Peer("inspector", ("@modelcontextprotocol/inspector@2.12.0",), ("legacy", "auto"), npm=True),
    Peer("typescript-1", ("@modelcontextprotocol/sdk@1.32.2",), ("legacy",), npm=True, suffix=".mjs"),
    Peer("typescript-2", ("@modelcontextprotocol/client@2.3.1",), ("legacy", "auto"), npm=True, suffix=".mjs"),
    Peer("fastmcp", ("fastmcp[tasks]==4.1.4",), ("legacy", "auto")),
    Peer("langchain", ("langchain-mcp-adapters==0.3.2",), ("legacy",)),
    Peer("openai-agents", ("openai-agents==0.24.0",)),
    Peer("pydantic-ai", ("pydantic-ai-slim[mcp]==2.68.0", "fastmcp-tasks==4.1.4")),
)

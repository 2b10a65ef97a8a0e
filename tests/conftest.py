import pytest


@pytest.fixture
def anyio_backend() -> str:
    """aiosqlite is built on asyncio, so asyncio is the backend."""
    return "asyncio"

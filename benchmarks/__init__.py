"""Figures for docs/performance.md: what taskorch does beside the limit of SQLite and beside other queues."""

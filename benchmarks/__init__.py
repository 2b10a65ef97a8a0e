"""Figures for docs/explanation/performance.md: taskorch beside the limit of SQLite and beside other queues."""

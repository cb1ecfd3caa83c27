"""Watches registered clusters: `watches` holds one `cluster` watch for each, and that has a `healer`."""

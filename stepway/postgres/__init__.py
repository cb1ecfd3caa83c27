"""An embedded PostgreSQL: `embedded.EmbeddedPostgres` runs one as a child, in a folder of its own.

The control plane uses it, and so does a workflow server; it imports nothing of `services` or `shared`.
"""

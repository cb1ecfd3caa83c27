"""Serves Python-coded workflows (`llama-index-workflows`) over HTTP: `WorkflowServer`, `stepway serve FILE`.

It runs beside a user's own code, so it imports nothing of `services` or `shared`: folders of those names are the user's.
"""

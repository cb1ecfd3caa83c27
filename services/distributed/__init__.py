"""Stepway as services: each a process of its own beside a Dapr sidecar.

`process` is what they have in common; `app`, `model`, `cluster` and `gateway` put one service together each.
"""

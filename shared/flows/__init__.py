"""Flows as data: what a flow is, how it is written, and what is wrong with it. Nothing here does I/O.

`dialects` read a body into a `definition.Flow` and write it back; `validation` finds every fault in it; `references`,
`conditions` and `graph` are what an execution needs of it. `validation.accept` is the way in for a body from outside.
"""

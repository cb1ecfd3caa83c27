"""Calls between services: a `Protocol` of plain typed methods is served by one and called by another.

`methods` reads what a port's methods take and give, `faults` says how refusals travel, `server` and `client` are the ends,
`parts` is how streams go. Every call is `POST /internal/<port>/<method>` with a JSON object of the arguments.
"""

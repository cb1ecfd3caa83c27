"""What can be seen of a running process: traces, metrics, ids in logs, probes. Every service uses the same modules.

`traces` makes spans, `work` those of runs and steps (with their metrics and log ids), `http` those of requests, `metrics`
has the series of a process, `ledger` those of the database, `probes` says whether a process lives and can serve, and
`server` shows metrics and probes on a port of their own.
"""

"""The engine for services: Dapr Workflow drives the runs, the app's ledger says what is true.

`ports` is what the app and the workers say to each other. On the app's side `dispatcher` gives runs to the services, and
`access` answers their reports; on a worker's side `drive` is a run as a workflow, `activities` are its steps, and
`worker` joins both to a sidecar. `sidecar` is the only module that speaks to Dapr's own API.
"""

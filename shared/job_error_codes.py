"""What jobs fail with: each code's meaning and what the reader can do. docs/errors.md is made from it.

A job may also fail with a code of `shared.error_codes`, where a step was refused what a request would be.
"""

from typing import NamedTuple


class JobCode(NamedTuple):
    title: str
    remedy: str


_RETRY = "Retry the job; if it fails again, read its steps and the endpoint's logs."
_ELSEWHERE = "Check the address or the path, then start again with the right one."
_CLUSTER = "Look at the cluster and the message of the step; retry the job when it is well."
_INTERNAL = "Retry the job; if it persists, report the job's id."
_NOTHING = "Nothing: what the job worked on was deleted or is being changed by another job."

JOB_CODES: dict[str, JobCode] = {
    # any job
    "access_revoked": JobCode(
        "Who started the job lost the key or the membership", "Start it again with a key that may."
    ),
    "deadline_exceeded": JobCode("The job took longer than it may", _RETRY),
    "not_this_jobs_business": JobCode("The job asked for what it does not name", _INTERNAL),
    "result_too_large": JobCode("A step's result is too large", _INTERNAL),
    "undo_failed": JobCode(
        "What the job did could not all be undone", "See what is left in the message; retry the job to undo the rest."
    ),
    "worker_lost": JobCode("The process that did the work ended each time", "Check the machine's memory, then retry."),
    # executions of flows
    "artifact_gone": JobCode("A file is not there any more", "Start again with a file that is there."),
    "bad_expression": JobCode("A JMESPath expression cannot be used", "Mend the expression, as the message says."),
    "bad_pdf": JobCode("A file is no PDF that can be read", "Give another file."),
    "bad_reference": JobCode("A reference of the flow names what is not there", "Mend the reference in the flow."),
    "bad_schema": JobCode("A JSON Schema cannot be used", "Mend the schema, as the message says."),
    "child_busy": JobCode("A sub-flow is being started by another process", _RETRY),
    "child_gone": JobCode("The execution of a sub-flow is not there any more", "Start the workflow again."),
    "flow_gone": JobCode("The workflow of a sub-flow is not there any more", "Name a workflow of the same project."),
    "flow_too_deep": JobCode("Workflows run each other too deeply", "Let fewer workflows be parts of each other."),
    "no_text": JobCode("A file has no text", "Give a file that has text, or let another task read it."),
    "pdf_encrypted": JobCode("A PDF is encrypted", "Give the file without its password."),
    "sub_flow_failed": JobCode("A sub-flow has failed", "Look at its execution, then retry this one."),
    "sub_flow_cancelled": JobCode("A sub-flow was cancelled", "Retry this execution; it starts the sub-flow anew."),
    "too_large": JobCode("A value or a file is larger than the task takes", "Give less, or cut it by a task before."),
    # where models come from
    "access_denied": JobCode("The server wants a credential", "Choose a credential that may read this."),
    "address_refused": JobCode("The address is not allowed", "Use a public address, or have this one allowed."),
    "busy": JobCode("The same model is being fetched already", "Wait for the other job, then retry."),
    "checksum_mismatch": JobCode("A stored file is not what was imported", "Import the model again."),
    "connection_lost": JobCode("The connection breaks again and again", "Retry: it goes on where it was."),
    "credential_gone": JobCode("The credential is not there any more", "Choose another credential, and start again."),
    "credential_refused": JobCode("The credential does not suffice", "Choose one with the permission to read this."),
    "credential_required": JobCode(
        "There is no such public model", "Check its name; for a private one, add a credential."
    ),
    "file_gone": JobCode("A stored file is not there any more", "Import the model again."),
    "file_missing": JobCode("A stored file is not there", "Import the model again."),
    "file_not_found": JobCode("The source has no such file", _ELSEWHERE),
    "gated_model": JobCode("The model is gated", "Ask for access on the hub, and use a credential of that account."),
    "incomplete_model": JobCode("Parts of the model are missing", "Add the missing files at the source, then retry."),
    "insufficient_disk": JobCode("There is not enough disk space", "Free some space, then retry."),
    "invalid_uri": JobCode("The hub does not accept this name", _ELSEWHERE),
    "model_file_damaged": JobCode("A file of the model is damaged", "Get a whole copy of the file, and import that."),
    "model_too_large": JobCode(
        "The model is larger than is allowed", "Choose a smaller one, or have the limit raised."
    ),
    "no_model_files": JobCode("There is no file of a model", _ELSEWHERE),
    "not_a_regular_file": JobCode("The path is no file", _ELSEWHERE),
    "objects_refused": JobCode(
        "The object store does not let us", "Run `stepway check`, put right what it finds, then retry."
    ),
    "objects_unavailable": JobCode("The object store does not answer", "Retry the job when the store is back."),
    "outside_roots": JobCode("The path is outside the allowed folders", "Put the model below one of the model roots."),
    "quantization_not_found": JobCode("There is no such quantization", "Choose one of those that the message names."),
    "revision_not_found": JobCode("There is no such revision", "Check the branch, tag or commit."),
    "size_mismatch": JobCode("The server sends another size than it said", _RETRY),
    "source_changed": JobCode("The source changed while it was read", "Retry when nothing writes to it."),
    "source_not_found": JobCode("There is nothing at the address", _ELSEWHERE),
    "source_refused": JobCode("The source may not be read", "See the message; mend the permissions or choose another."),
    "source_unavailable": JobCode("The source does not answer as it should", "Retry later."),
    "too_many_files": JobCode("There are too many files", "Name a single folder or file of the model."),
    "too_many_redirects": JobCode("The server redirects without end", _ELSEWHERE),
    "unsafe_archive": JobCode("The archive is not safe to unpack", "Pack it again without links, odd paths or bombs."),
    "unsafe_path": JobCode("A path of the model is not safe", "Rename the file, or remove the link, at the source."),
    # clusters and endpoints
    "autoscaled": JobCode("The cluster sets the number of workers itself", "Change the autoscaler, or remove it."),
    "being_removed": JobCode("The endpoint is still being removed", "Retry in a while."),
    "cluster_conflict": JobCode("Several change the endpoint at once", "Retry the job."),
    "call_refused": JobCode(
        "One of our services refused another", "Check that all services have keys of one installation and one version."
    ),
    "cluster_gone": JobCode("The cluster is not registered any more", "Choose another cluster."),
    "cluster_nodes_away": JobCode("Nodes that have room are not ready", "Retry when they are."),
    "credentials_superseded": JobCode("Other credentials have been sent since", "Send these again if they are meant."),
    "endpoint_gone": JobCode("The endpoint is not there any more", _NOTHING),
    "engine_unavailable": JobCode("The engine cannot run on this machine", "See the message for what is missing."),
    "engine_unsupported": JobCode("No engine there serves this model", "Choose another cluster or model."),
    "insufficient_capacity": JobCode("There is not enough memory or room", "Free some, or ask for less concurrency."),
    "intent_unreadable": JobCode(
        "Somebody has changed what Stepway keeps in the cluster", "Delete the ConfigMap that the message names."
    ),
    "load_failed": JobCode("The model did not reach the cluster", _CLUSTER),
    "model_gone": JobCode("The model is not there any more", "Choose another model."),
    "model_unreachable": JobCode(
        "The cluster cannot fetch the model", "Set an address that its pods can reach, or give it a storage class."
    ),
    "not_gone_yet": JobCode("Something is still in the cluster", _CLUSTER),
    "not_your_job": JobCode("A service asked about another service's job", "Check the services' keys."),
    "owned_by_another": JobCode(
        "Another installation owns this in the cluster", "Use another namespace, or remove what is left over there."
    ),
    "probe_failed": JobCode("A worker did not answer the first inference", "Read the endpoint's logs, then retry."),
    "process_unknown": JobCode("A process was taken for dead", _NOTHING),
    "runtime_busy": JobCode("Somebody else changes the endpoint", "Retry in a while."),
    "runtime_elsewhere": JobCode("The cluster is another machine", "Deploy to the machine that the processes share."),
    "runtime_stopping": JobCode("The service is stopping", "Retry when it is up again."),
    "runtime_unsupported": JobCode("The cluster cannot do this", "Choose another cluster, or see the message."),
    "secret_missing": JobCode(
        "A secret that the workload needs is missing", "Choose a credential with all its fields."
    ),
    "service_away": JobCode("One of our services does not answer", _RETRY),
    "setting_unusable": JobCode("A setting of the service cannot be used", "Mend the setting that the message names."),
    "stale_epoch": JobCode("Another process looks after the cluster", _RETRY),
    "superseded": JobCode("A later change has taken its place", _NOTHING),
    "supervisor_failed": JobCode("A worker's supervisor did not start", "Check the machine, then retry."),
    "unknown_endpoint": JobCode("The cluster does not run this endpoint", "Deploy it again."),
    "worker_crash_loop": JobCode("A worker ends again and again", "Read its logs; it may need more memory."),
    "worker_not_ready": JobCode("A worker was not ready in time", "Read its logs, then retry."),
    "worker_not_stopped": JobCode("A worker's process does not end", "Check the machine, then retry."),
}

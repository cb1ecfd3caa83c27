"""Every error code of the public API: its status, its title and what the reader can do. docs/errors.md is made from it."""

from typing import NamedTuple


class Code(NamedTuple):
    status: int
    title: str
    remedy: str
    retryable: bool = False


CODES: dict[str, Code] = {
    # requests that cannot be read
    "invalid_json": Code(
        400,
        "The body is not valid JSON",
        "Send one JSON object in UTF-8, without NaN, duplicate keys or trailing text.",
    ),
    "invalid_request": Code(
        400, "The request cannot be read", "Check the method, the path and the encoding of the request."
    ),
    "invalid_query": Code(
        400,
        "A parameter of the query is wrong",
        "See `errors` for each; /openapi.json has the parameters of each path.",
    ),
    "invalid_cursor": Code(400, "The cursor is not one of this list", "Start again without a cursor."),
    "host_not_allowed": Code(400, "The Host header is not allowed", "Add the host name to STEPWAY_ALLOWED_HOSTS."),
    "body_too_large": Code(413, "The body is too large", "Send less; the limit is in the detail."),
    "unsupported_media_type": Code(
        415,
        "The content type is not accepted",
        "Send application/json, or multipart/form-data where the route takes files.",
    ),
    # who may
    "unauthenticated": Code(
        401, "No valid key was sent", "Send `Authorization: Bearer <key>`; `stepway keys create` makes one."
    ),
    "forbidden": Code(403, "Your role does not allow this", "Ask an admin for a role that does."),
    "not_owner": Code(403, "This belongs to someone else", "Ask its owner, or an admin."),
    "origin_not_allowed": Code(
        403, "A change by cookie needs a matching Origin", "Send the request from the console, or use a key."
    ),
    "not_found": Code(
        404, "There is no such thing here", "Check the id; what you may not see looks the same as what is not there."
    ),
    "method_not_allowed": Code(
        405, "The path does not take this method", "See /openapi.json for the methods of each path."
    ),
    # state
    "conflict": Code(409, "The present state does not allow this", "Read the object again, then decide."),
    "name_taken": Code(409, "The name is in use", "Choose another name, or delete what has it."),
    "revision_mismatch": Code(412, "The object has changed since you read it", "Read it again and repeat the change."),
    "in_use": Code(409, "Something still uses this", "Delete what uses it first; the detail names it."),
    "quota_exceeded": Code(
        409, "The project's quota is used up", "Delete something, or ask an admin to raise the quota."
    ),
    "idempotency_mismatch": Code(
        422,
        "The Idempotency-Key belongs to another request",
        "Use a new key for each request; repeat a key only with the same body.",
    ),
    "idempotency_in_flight": Code(
        409,
        "The first request with this Idempotency-Key is still being answered",
        "Wait as Retry-After says, then send it again.",
        retryable=True,
    ),
    "last_admin": Code(409, "There must be an active admin", "Make somebody else an admin first."),
    "builtin": Code(
        409, "This comes with Stepway and stays as it is", "Make one of your own with the values you want."
    ),
    # wizards
    "wrong_wizard": Code(
        409, "The workflow is of another wizard", "Send the step to the wizard that the workflow was begun with."
    ),
    "workflow_locked": Code(
        409, "The workflow's job runs", "Wait for its end, or cancel it; repeating what was sent is harmless."
    ),
    "workflow_finished": Code(409, "The workflow has ended", "Begin a new one."),
    "not_a_draft": Code(409, "The workflow is no draft any more", "Cancel it instead; its history stays."),
    "preview_not_offered": Code(
        409, "The wizard has no preview", "See `has_preview` of GET /wizards; trigger the workflow when it is complete."
    ),
    "too_many_drafts": Code(409, "Too many open drafts", "Finish, cancel or delete some first."),
    # models, clusters and endpoints
    "model_not_ready": Code(
        409, "The model cannot be used now", "Wait for its import; see the model's state and reason."
    ),
    "not_scannable": Code(422, "There are no files to scan", "Scan models that have files; a cloud model has none."),
    "scan_in_progress": Code(409, "A scan of this model is running", "Follow the job that is named, or cancel it."),
    "scan_required": Code(409, "The model's files have not been scanned", "Scan the model, then deploy it."),
    "scan_blocked": Code(
        409,
        "The latest scan keeps the model from being deployed",
        "Look at the findings; an admin may record an override.",
    ),
    "cluster_not_ready": Code(
        409, "The cluster cannot be used now", "See the cluster's state and reason, or choose another."
    ),
    "cluster_known": Code(409, "The cluster is registered already", "Use the cluster that is there."),
    "cluster_is_another": Code(
        409, "The credentials lead to another cluster", "Send credentials for this cluster, or register the other one."
    ),
    "cluster_is_local": Code(409, "This machine stays registered", "Delete its endpoints instead."),
    "endpoint_not_ready": Code(409, "The endpoint cannot be changed now", "See the endpoint's state and reason."),
    "tuning_unsupported": Code(
        422, "The engine cannot follow a setting", "Leave the setting out, or choose another cluster or model."
    ),
    "autoscale_unsupported": Code(422, "The cluster does not scale by itself", "Set `replicas`, or add workers."),
    "endpoint_locked": Code(409, "A job is changing the endpoint", "Wait for its end, or cancel it."),
    "model_files_gone": Code(
        410, "The model's files are not to be had any more", "Nothing: the endpoint or its model was deleted."
    ),
    "range_not_satisfiable": Code(416, "The file has no such bytes", "Ask for bytes within the file's size."),
    # jobs
    "job_finished": Code(409, "The job has already ended", "Read the job; start a new one if you need to."),
    "not_retryable": Code(409, "Only what has failed can be retried", "Wait for its end, or start it anew."),
    "not_the_newest_worker": Code(
        409, "Only the newest worker can be removed", "Remove the one that the detail names, or `count` of them."
    ),
    # flows
    "flow_invalid": Code(
        400,
        "The definition of the flow is wrong",
        "See `errors`: each names a place in the definition, and what is wrong there.",
    ),
    "flow_input_invalid": Code(
        400, "The inputs do not fit the flow", "See `errors` for each input; GET the flow for what it takes."
    ),
    "version_conflict": Code(
        409,
        "The flow has another version by now",
        "Read the flow again, then repeat the change with its `workflow_version`.",
    ),
    "too_many_flows": Code(409, "The project has as many flows as it may", "Delete some that are not used any more."),
    "too_many_files": Code(
        409,
        "The project keeps as many uploaded files, or as many bytes of them, as it may",
        "Delete some that are not used any more (`stepway flows files delete`); STEPWAY_FLOW_FILES_PER_PROJECT and "
        "STEPWAY_FLOW_FILE_BYTES_PER_PROJECT are the limits.",
    ),
    "too_many_executions": Code(
        429,
        "The project has as many executions in flight as it may",
        "Wait as Retry-After says, or cancel some; STEPWAY_FLOW_EXECUTIONS_IN_FLIGHT is the limit.",
        retryable=True,
    ),
    # workflow servers
    "run_ended": Code(409, "The run has already ended", "Read the run; start a new one if you need to."),
    # fields
    "validation_failed": Code(422, "Some fields are wrong", "See `errors` for each field."),
    "unknown_field": Code(422, "A field is not known here", "Remove it, or check its spelling."),
    "missing_fields": Code(422, "Something is still missing", "See `errors`: each names a field and its step."),
    "reference_not_found": Code(422, "A field names something that is not there", "Check the id."),
    "wrong_credential_type": Code(
        422, "The credential is of another type", "Choose one of the type that the detail names, or add it."
    ),
    # kubeconfigs
    "kubeconfig_too_large": Code(
        413,
        "The kubeconfig is too large",
        "Send only the context that is meant: `kubectl config view --minify --flatten`.",
    ),
    "kubeconfig_empty": Code(422, "The kubeconfig is empty", "Choose the file again."),
    "kubeconfig_binary": Code(
        422, "The kubeconfig is not a text file", "Send the YAML itself in UTF-8, not an archive or an encrypted file."
    ),
    "kubeconfig_not_yaml": Code(
        422, "The kubeconfig is not YAML", "Check the file with `kubectl config view --kubeconfig FILE`."
    ),
    "kubeconfig_several_documents": Code(
        422, "The kubeconfig holds several documents", "Send one document per cluster."
    ),
    "kubeconfig_aliases": Code(
        422, "The kubeconfig uses YAML aliases", "Write each value out: `kubectl config view --flatten` does."
    ),
    "kubeconfig_tags": Code(422, "The kubeconfig uses YAML tags", "Remove the tags."),
    "kubeconfig_duplicate_keys": Code(422, "The kubeconfig names something twice", "Remove one of the two entries."),
    "kubeconfig_too_deep": Code(422, "The kubeconfig is nested too deep", "Send a kubeconfig as kubectl writes it."),
    "kubeconfig_too_complex": Code(
        422,
        "The kubeconfig holds too many values",
        "Send only the context that is meant: `kubectl config view --minify --flatten`.",
    ),
    "kubeconfig_wrong_kind": Code(
        422, "The file is not a kubeconfig", "Send the file that kubectl uses, not a manifest."
    ),
    "kubeconfig_malformed": Code(
        422, "A field of the kubeconfig has the wrong type", "Send a kubeconfig as kubectl writes it."
    ),
    "kubeconfig_no_contexts": Code(
        422, "The kubeconfig has no contexts", "Add a context with `kubectl config set-context`."
    ),
    "kubeconfig_no_current_context": Code(
        422, "The kubeconfig has no current context", "Choose one with `kubectl config use-context`."
    ),
    "kubeconfig_context_unknown": Code(
        422, "The current context does not exist", "Choose one with `kubectl config use-context`."
    ),
    "kubeconfig_cluster_missing": Code(
        422,
        "The current context's cluster does not exist",
        "Send the whole file, or `kubectl config view --minify --flatten --raw`.",
    ),
    "kubeconfig_user_missing": Code(
        422,
        "The current context's user does not exist",
        "Send the whole file, or `kubectl config view --minify --flatten --raw`.",
    ),
    "kubeconfig_exec": Code(
        422,
        "Credentials by a command are not accepted",
        "Make a service account with deploy/cluster-access.yaml and use its token.",
    ),
    "kubeconfig_auth_provider": Code(
        422,
        "Credentials by an auth-provider are not accepted",
        "Make a service account with deploy/cluster-access.yaml and use its token.",
    ),
    "kubeconfig_file_reference": Code(
        422,
        "The kubeconfig points to other files",
        "Put their content into it: `kubectl config view --minify --flatten --raw`.",
    ),
    "kubeconfig_proxy": Code(
        422, "A proxy in the kubeconfig is not accepted", "Give a server URL that can be reached directly."
    ),
    "kubeconfig_impersonation": Code(
        422, "Impersonation is not accepted", "Send the credentials of the account that is meant."
    ),
    "kubeconfig_basic_auth": Code(
        422,
        "User name and password are not accepted",
        "Make a service account with deploy/cluster-access.yaml and use its token.",
    ),
    "kubeconfig_no_credentials": Code(
        422, "The kubeconfig has no complete credentials", "Use a token, or a client certificate with its key."
    ),
    "kubeconfig_bad_base64": Code(
        422, "A field is not valid base64", "Make the file again with `kubectl config view --minify --flatten --raw`."
    ),
    "kubeconfig_bad_certificate": Code(
        422, "A certificate cannot be read", "Make the file again with `kubectl config view --minify --flatten --raw`."
    ),
    "kubeconfig_bad_key": Code(
        422,
        "The client key cannot be used",
        "Use an RSA key of up to 4096 bits, an elliptic curve key or an Ed25519 key, without a passphrase.",
    ),
    "kubeconfig_certificate_expired": Code(422, "A certificate has expired", "Have it renewed, and send the new file."),
    "kubeconfig_certificate_not_yet_valid": Code(422, "A certificate is not valid yet", "Check the clocks, or wait."),
    "kubeconfig_key_mismatch": Code(
        422, "Key and certificate do not belong together", "Send the key that the certificate was made with."
    ),
    "kubeconfig_bad_token": Code(422, "The token is malformed", "Copy the token again; it is one line."),
    "kubeconfig_token_expired": Code(
        422,
        "The token has expired",
        "Make a new one: `kubectl create token`, or the Secret of deploy/cluster-access.yaml.",
    ),
    "kubeconfig_server_missing": Code(
        422, "The kubeconfig has no server URL", "Add `server: https://…` to the cluster."
    ),
    "kubeconfig_server_invalid": Code(
        422, "The server's URL is not usable", "Use https://host:port with a DNS name or an address."
    ),
    "kubeconfig_plain_http": Code(422, "The server's URL is plain http", "Use the cluster's https address."),
    "kubeconfig_userinfo": Code(
        422, "The server's URL holds a user name or password", "Remove it from the URL and use a token."
    ),
    "kubeconfig_loopback_address": Code(
        422, "The server is this machine itself", "Use an address of the cluster that can be reached from Stepway."
    ),
    "kubeconfig_link_local_address": Code(
        422, "The server's address is link-local", "Use an address of the cluster that can be reached from Stepway."
    ),
    "kubeconfig_metadata_address": Code(
        422, "The server's address is a metadata service", "Use the address of the cluster's API server."
    ),
    "kubeconfig_private_address": Code(
        422,
        "The server's address is private",
        "Use a public address, or have private ones allowed for this installation.",
    ),
    "kubeconfig_reserved_address": Code(
        422, "The server's address is reserved", "Use the address of the cluster's API server."
    ),
    "kubeconfig_insecure": Code(
        422, "The server would not be verified", "Add its CA certificate, or confirm that it is not to be verified."
    ),
    "kubeconfig_insecure_with_ca": Code(
        422, "The kubeconfig both has a CA and ignores it", "Remove `insecure-skip-tls-verify`."
    ),
    "kubeconfig_tls_server_name": Code(
        422, "The TLS server name is not a name", "Use the DNS name or address that is in the server's certificate."
    ),
    # connecting to clusters
    "cluster_name_not_found": Code(
        503,
        "The cluster's name does not resolve",
        "Check the server's name, and the DNS of the machine that Stepway runs on.",
        retryable=True,
    ),
    "cluster_address_refused": Code(
        422,
        "The cluster's name leads to an address that is not allowed",
        "Use a name that resolves to the cluster's API server.",
    ),
    "cluster_refused": Code(
        503, "The cluster refuses connections", "Check that the API server runs, and its port.", retryable=True
    ),
    "cluster_unreachable": Code(
        503,
        "The cluster cannot be reached",
        "Check routes and firewalls between Stepway and the cluster.",
        retryable=True,
    ),
    "cluster_connect_timeout": Code(
        503,
        "No connection to the cluster in time",
        "Check routes and firewalls between Stepway and the cluster.",
        retryable=True,
    ),
    "cluster_answer_timeout": Code(
        503, "The cluster does not answer in time", "Check the API server's load and its logs.", retryable=True
    ),
    "cluster_unavailable": Code(
        503, "The cluster's API server has a fault", "Check the API server's logs.", retryable=True
    ),
    "cluster_certificate_untrusted": Code(
        422,
        "The cluster's certificate is not from the given authority",
        "Send the CA certificate of this very cluster.",
    ),
    "cluster_certificate_name": Code(
        422,
        "The cluster's certificate is for another name",
        "Use a name that is in the certificate, or set `tls-server-name`.",
    ),
    "cluster_certificate_expired": Code(
        422, "The cluster's certificate is not valid now", "Renew the API server's certificate, and check the clocks."
    ),
    "cluster_tls_failed": Code(
        422, "No TLS connection to the cluster", "Check that the URL leads to the API server's https port."
    ),
    "cluster_unauthorized": Code(
        422, "The cluster does not accept the credentials", "Make new ones; the token may have been revoked."
    ),
    "cluster_forbidden": Code(
        422, "The cluster forbids what is needed", "Apply deploy/cluster-access.yaml and use its service account."
    ),
    "cluster_request_refused": Code(
        422, "The cluster refuses a request", "Check the cluster's version and its admission policies."
    ),
    "cluster_not_kubernetes": Code(422, "The server is not a Kubernetes API server", "Check the server's URL."),
    "cluster_redirects": Code(422, "The server redirects elsewhere", "Use the API server's own URL."),
    "cluster_answer_too_large": Code(422, "The cluster's answer is too large", "Check the server's URL."),
    "cluster_too_old": Code(
        422, "The cluster's version is too old", "Upgrade the cluster; the detail names the oldest version."
    ),
    "cluster_permissions_missing": Code(
        422,
        "The account lacks permissions in the cluster",
        "Apply deploy/cluster-access.yaml and use its service account.",
    ),
    # load
    "rate_limited": Code(429, "Too many requests", "Wait as Retry-After says.", retryable=True),
    "unavailable": Code(503, "Not available at the moment", "Try again as Retry-After says.", retryable=True),
    "internal": Code(500, "A fault of ours", "Try again; if it persists, report the request id.", retryable=True),
    # inference
    "missing_required_parameter": Code(
        400,
        "A parameter of the request is missing",
        "Send it; the detail names it, and OpenAI's reference describes it.",
    ),
    "empty_array": Code(400, "The chat has no message", "Send at least one message, with role and content."),
    "context_length_exceeded": Code(
        400,
        "The prompt and the answer do not fit the model's context",
        "Send a shorter prompt or ask for fewer tokens, or deploy the model with a longer context.",
    ),
    "model_not_found": Code(
        404, "The endpoint serves no such model", "Use a name that /v1/models lists, or leave `model` out."
    ),
    "operation_unsupported": Code(
        400, "The model does not serve this operation", "See `apis` of the endpoint for what it serves."
    ),
    "too_many_streams": Code(
        429, "Too many streams with this key", "End a stream first, or use another key.", retryable=True
    ),
    "too_many_transfers": Code(
        429, "Too many files are being fetched at once", "Wait as Retry-After says.", retryable=True
    ),
    "endpoint_busy": Code(
        429, "All workers of the endpoint are busy", "Wait as Retry-After says, or add a worker.", retryable=True
    ),
    "endpoint_unavailable": Code(
        503,
        "The endpoint has no worker that can answer",
        "Look at the endpoint's state and its reason.",
        retryable=True,
    ),
    "worker_failed": Code(
        502, "The worker gave no usable answer", "Try again; if it persists, read the endpoint's logs.", retryable=True
    ),
    "worker_timeout": Code(504, "The worker took too long", "Ask for less, or stream the answer.", retryable=True),
}

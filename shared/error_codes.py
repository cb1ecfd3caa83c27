"""Every error code of the public API: its status, its title and what the reader can do. docs/errors.md is made from it."""

from typing import NamedTuple


class Code(NamedTuple):
    status: int
    title: str
    remedy: str
    retryable: bool = False


CODES: dict[str, Code] = {
    # requests that cannot be read
    "invalid_json": Code(400, "The body is not valid JSON", "Send one JSON object in UTF-8, without NaN, duplicate keys or trailing text."),
    "invalid_request": Code(400, "The request cannot be read", "Check the method, the path and the encoding of the request."),
    "invalid_cursor": Code(400, "The cursor is not one of this list", "Start again without a cursor."),
    "host_not_allowed": Code(400, "The Host header is not allowed", "Add the host name to STEPWAY_ALLOWED_HOSTS."),
    "body_too_large": Code(413, "The body is too large", "Send less; the limit is in the detail."),
    "unsupported_media_type": Code(415, "The content type is not accepted", "Send application/json, or multipart/form-data where the route takes files."),
    # who may
    "unauthenticated": Code(401, "No valid key was sent", "Send `Authorization: Bearer <key>`; `stepway keys create` makes one."),
    "forbidden": Code(403, "Your role does not allow this", "Ask an admin for a role that does."),
    "not_owner": Code(403, "This belongs to someone else", "Ask its owner, or an admin."),
    "origin_not_allowed": Code(403, "A change by cookie needs a matching Origin", "Send the request from the console, or use a key."),
    "not_found": Code(404, "There is no such thing here", "Check the id; what you may not see looks the same as what is not there."),
    "method_not_allowed": Code(405, "The path does not take this method", "See /openapi.json for the methods of each path."),
    # state
    "conflict": Code(409, "The present state does not allow this", "Read the object again, then decide."),
    "name_taken": Code(409, "The name is in use", "Choose another name, or delete what has it."),
    "revision_mismatch": Code(412, "The object has changed since you read it", "Read it again and repeat the change."),
    "in_use": Code(409, "Something still uses this", "Delete what uses it first; the detail names it."),
    "quota_exceeded": Code(409, "The project's quota is used up", "Delete something, or ask an admin to raise the quota."),
    # fields
    "validation_failed": Code(422, "Some fields are wrong", "See `errors` for each field."),
    "unknown_field": Code(422, "A field is not known here", "Remove it, or check its spelling."),
    "missing_fields": Code(422, "Something is still missing", "See `errors`: each names a field and its step."),
    "reference_not_found": Code(422, "A field names something that is not there", "Check the id."),
    # load
    "rate_limited": Code(429, "Too many requests", "Wait as Retry-After says.", retryable=True),
    "unavailable": Code(503, "Not available at the moment", "Try again as Retry-After says.", retryable=True),
    "internal": Code(500, "A fault of ours", "Try again; if it persists, report the request id.", retryable=True),
}

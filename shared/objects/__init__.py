"""Where the bytes are kept: content-addressed blobs and small documents behind one interface.

`store` is the interface and the rules for keys, `directory` keeps objects in a folder, `s3` in a bucket, and `opened`
gives the one that the settings name. `scratch` has the folders for unfinished work, `durable` the file operations that
survive a power cut, `blocking` runs what blocks beside the event loop.
"""

from shared.objects.directory import DirectoryStore
from shared.objects.store import (
    FileIdentity,
    InvalidKey,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    SourceChanged,
    StoreRefused,
    StoreUnavailable,
    WrongDigest,
    blob_key,
    manifest_key,
)

__all__ = [
    "DirectoryStore",
    "FileIdentity",
    "InvalidKey",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStore",
    "SourceChanged",
    "StoreRefused",
    "StoreUnavailable",
    "WrongDigest",
    "blob_key",
    "manifest_key",
]

"""The object store that the settings name: a bucket where `s3_bucket` is set, else a folder."""

from pathlib import Path

from shared.objects.directory import DirectoryStore
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
from shared.objects.store import ObjectStore, StoreRefused
from shared.settings import Settings


def open_store(settings: Settings, directory: Path) -> ObjectStore:
    """The store; nothing is asked of a server yet. `directory` has the objects, or only the scratch folders of a bucket.

    Raises `StoreRefused` when a file that the settings name cannot be read.
    """
    place = s3_place(settings)
    return DirectoryStore(directory) if place is None else S3Store(place, directory / "scratch")


def s3_place(settings: Settings, *, bucket: str | None = None, prefix: str | None = None) -> S3Place | None:
    """Where the bucket is, as whom to ask; None where the settings name none. Another bucket may be given."""
    bucket = bucket or settings.s3_bucket
    if bucket is None:
        return None
    if settings.s3_endpoint is None or settings.s3_access_key is None:
        raise StoreRefused("A bucket needs STEPWAY_S3_ENDPOINT and STEPWAY_S3_ACCESS_KEY as well.")
    ca = settings.s3_ca.expanduser().absolute() if settings.s3_ca else None
    if ca is not None:
        _read(ca, "STEPWAY_S3_CA")
    return S3Place(
        endpoint=settings.s3_endpoint,
        bucket=bucket,
        access_key=settings.s3_access_key,
        secret_key=_secret(settings),
        prefix=settings.s3_prefix if prefix is None else prefix,
        region=settings.s3_region,
        ca=ca,
    )


def _secret(settings: Settings) -> str:
    if settings.s3_secret_key is not None:
        return settings.s3_secret_key.get_secret_value()
    if settings.s3_secret_key_file is None:
        raise StoreRefused("A bucket needs STEPWAY_S3_SECRET_KEY or STEPWAY_S3_SECRET_KEY_FILE.")
    secret = _read(settings.s3_secret_key_file.expanduser(), "STEPWAY_S3_SECRET_KEY_FILE").strip()
    if not secret:
        raise StoreRefused("The file of STEPWAY_S3_SECRET_KEY_FILE is empty.")
    return secret


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StoreRefused(f"The file of {setting} ({path}) cannot be read: {reason}.") from None

"""The list of a model's files, from the object store."""

from shared.contracts.deployments import DeploySpec
from shared.contracts.models import Manifest
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectNotFound, ObjectStore, manifest_key


async def manifest_of(objects: ObjectStore, spec: DeploySpec) -> Manifest:
    """Raises Permanent where the model has no files, or they are gone."""
    if spec.digest is None:
        raise Permanent("file_missing", "This model has no files.")
    try:
        return Manifest.model_validate_json(await objects.get(manifest_key(spec.digest)))
    except ObjectNotFound:
        raise Permanent("file_missing", "The model's files are not in the object store any more.") from None

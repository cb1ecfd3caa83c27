"""The catalogue of well-known providers, cloud models and kinds of credentials: data, and no tables.

`loader` reads `catalogue.yaml`; the app upserts what it gives out by id at every start. `credentials` says what a kind
of credential consists of.
"""

from services.app.models.catalogue.credentials import CredentialField, CredentialType
from services.app.models.catalogue.loader import (
    CloudModelSeed,
    ProviderSeed,
    ProviderType,
    Tag,
    cloud_models,
    credential_type,
    credential_types,
    known_as_of,
    providers,
)

__all__ = [
    "CloudModelSeed",
    "CredentialField",
    "CredentialType",
    "ProviderSeed",
    "ProviderType",
    "Tag",
    "cloud_models",
    "credential_type",
    "credential_types",
    "known_as_of",
    "providers",
]

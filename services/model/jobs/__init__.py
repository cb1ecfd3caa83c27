"""The jobs of the model service."""

from services.model.jobs.add_cloud_model import add_cloud_model
from services.model.jobs.import_model import import_model
from services.model.jobs.scan_model import scan_model

JOBS = (import_model, scan_model, add_cloud_model)

"""The jobs of the cluster service."""

from services.cluster.jobs.delete_endpoint import delete_endpoint
from services.cluster.jobs.deploy_model import deploy_model
from services.cluster.jobs.register_cluster import register_cluster
from services.cluster.jobs.scale_endpoint import add_worker, remove_worker

JOBS = (register_cluster, deploy_model, add_worker, remove_worker, delete_endpoint)

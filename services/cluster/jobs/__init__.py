"""The jobs of the cluster service."""

from services.cluster.jobs.delete_cluster import delete_cluster, remove_orphans
from services.cluster.jobs.delete_endpoint import delete_endpoint
from services.cluster.jobs.deploy_model import deploy_model
from services.cluster.jobs.register_cluster import change_credentials, inspect_cluster, register_cluster
from services.cluster.jobs.scale_endpoint import add_worker, remove_worker, start_endpoint, stop_endpoint
from services.cluster.jobs.update_endpoint import update_endpoint

JOBS = (
    register_cluster, change_credentials, inspect_cluster, remove_orphans, delete_cluster, deploy_model, update_endpoint,
    add_worker, remove_worker, stop_endpoint, start_endpoint, delete_endpoint,
)  # fmt: skip

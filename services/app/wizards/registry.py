"""All wizards: one line each. A test holds the folder `types` and this list to each other."""

from services.app.wizards.contract import Wizard
from services.app.wizards.types.add_worker import AddWorker
from services.app.wizards.types.cloud_model import CloudModelOnboarding
from services.app.wizards.types.cluster import ClusterOnboarding
from services.app.wizards.types.deployment import ModelDeployment
from services.app.wizards.types.local_model import LocalModelOnboarding
from services.app.wizards.types.security_scan import ModelSecurityScan

WIZARDS: dict[str, Wizard] = {
    wizard.type: wizard
    for wizard in (
        CloudModelOnboarding(),
        LocalModelOnboarding(),
        ModelSecurityScan(),
        ModelDeployment(),
        ClusterOnboarding(),
        AddWorker(),
    )
}

"""What every model is described by, be it a cloud model or one with files: the base of both wizards' details step."""

from services.app.wizards.contract import StepModel
from services.app.wizards.fields import FilledLongText, FilledText, Id, Name, Tags


class ModelDetails(StepModel):
    name: Name
    uri: FilledText | None = None
    author: FilledText | None = None
    tags: Tags | None = None
    icon: FilledText | None = None
    description: FilledLongText | None = None
    project_id: Id | None = None

"""Networks that turn a clip's media into one embedding vector, one file each."""

from fsmer.backbones.base import Backbone, ClassDirections, model_hash
from fsmer.backbones.embedding import embed
from fsmer.backbones.registry import ModelInfo, create_model, list_models, load_model, register_backbone

__all__ = [
    "Backbone",
    "ClassDirections",
    "ModelInfo",
    "create_model",
    "embed",
    "list_models",
    "load_model",
    "model_hash",
    "register_backbone",
]

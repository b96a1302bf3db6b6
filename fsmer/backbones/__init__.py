"""Networks that turn a clip's media into one embedding vector, one file each."""

from fsmer.backbones.base import Backbone, ClassDirections, model_hash
from fsmer.backbones.embedding import batch_of, check_clips, embed, read_inputs
from fsmer.backbones.recipe import TrainRecipe
from fsmer.backbones.registry import ModelInfo, as_backbone, create_model, list_models, load_model, register_backbone
from fsmer.backbones.targets import Targets
from fsmer.backbones.wrapped import wrap

__all__ = ["Backbone", "ClassDirections", "ModelInfo", "Targets", "TrainRecipe", "as_backbone", "batch_of"]
__all__ += ["check_clips", "create_model", "embed", "list_models", "load_model", "model_hash", "read_inputs"]
__all__ += ["register_backbone", "wrap"]
__dir__ = __all__.copy  # tab completion shows public names only

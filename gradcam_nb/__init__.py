"""What in a picture made a PyTorch model say what it said, and whether that picture can be trusted."""

__version__ = "0.1.0"

from .core.cam import BaseCAM
from .core.record import Record, record
from .core.replay import replay
from .explain import Explanation, explain, list_methods
from .imaging.figure import grid
from .imaging.overlay import overlay, show_cam_on_image
from .imaging.preprocess import Preprocess, deprocess_image, preprocess_for, preprocess_image
from .imaging.read import read_image
from .imaging.regions import to_boxes, to_mask
from .layers import list_layers, suggest_layer
from .methods.gradcam import GradCAM
from .models import load_model
from .reshape.channels_last import channels_last_reshape_transform
from .reshape.pick import pick_reshape
from .reshape.vit import vit_reshape_transform
from .targets.classifier import ClassifierOutputTarget

__all__ = [
    "BaseCAM", "ClassifierOutputTarget", "Explanation", "GradCAM", "Preprocess", "Record",
    "channels_last_reshape_transform", "deprocess_image", "explain", "grid", "list_layers", "list_methods", "load_model",
    "overlay", "pick_reshape", "preprocess_for", "preprocess_image", "read_image", "record", "replay",
    "show_cam_on_image", "suggest_layer", "to_boxes", "to_mask", "vit_reshape_transform",
]

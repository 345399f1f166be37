"""What in a picture made a PyTorch model say what it said, and whether that picture can be trusted."""

__version__ = "0.1.0"

from . import compat
from .catalogue import list_methods, list_metrics
from .compare import compare, compare_layers
from .core.cam import BaseCAM
from .engine.layers import list_layers
from .engine.layout import verify_layout
from .engine.live import suggest_layer
from .engine.record import Record, record
from .engine.replay import replay
from .explain import explain
from .explanation import Explanation
from .imaging.arrays import deprocess_image, preprocess_image
from .imaging.figure import grid
from .imaging.overlay import overlay, show_cam_on_image
from .imaging.preprocess import Preprocess, preprocess_for
from .imaging.read import read_image
from .imaging.regions import to_boxes, to_mask
from .models import load_model
from .smoothing.augment import mirrored_and_scaled
from .smoothing.noise import noisy
from .widgets.explore import explore, explored
from .widgets.picker import method_images, picker, picker_figure
from .methods import *
from .metrics import *
from .reshape import *
from .targets import *

__all__ = [
    "AblationCAM",
    "ADCC",
    "ARCC",
    "AttentionRelevance",
    "AttentionRollout",
    "BaseCAM",
    "BeforeSuppression",
    "benchmark",
    "BestIoU",
    "BinaryClassifierOutputTarget",
    "BoxTarget",
    "CAM",
    "CamMultImageConfidenceChange",
    "channels_last_reshape_transform",
    "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget",
    "ClassifierOutputTarget",
    "Coherency",
    "compare",
    "compare_layers",
    "compat",
    "Complexity",
    "Comprehensiveness",
    "Consistency",
    "ContrastTarget",
    "DeepFeatureFactorization",
    "Deletion",
    "deprocess_image",
    "DetectionTarget",
    "detr_candidates",
    "DifferenceTarget",
    "DRISE",
    "DropInConfidence",
    "EigenCAM",
    "EigenGradCAM",
    "EnergyInside",
    "explain",
    "Explanation",
    "explore",
    "explored",
    "FasterRCNNBoxScoreTarget",
    "FEM",
    "FinerCAM",
    "FinerWeightedTarget",
    "fpn_reshape_transform",
    "FullGrad",
    "GeneratedTokenTarget",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GradECLIP",
    "grid",
    "GScoreCAM",
    "GuidedBackpropReLUModel",
    "GuidedGradCAM",
    "HiResCAM",
    "ImageTextClassifier",
    "ImageTextTarget",
    "IncreaseInConfidence",
    "Infidelity",
    "Insertion",
    "InstanceMaskTarget",
    "IoU",
    "ISCAM",
    "KPCA_CAM",
    "LayerCAM",
    "LeGrad",
    "list_layers",
    "list_methods",
    "list_metrics",
    "load_model",
    "MaxSensitivity",
    "method_images",
    "Metric",
    "mirrored_and_scaled",
    "MultiLabelOutputTarget",
    "multiply_tensor_with_cam",
    "noisy",
    "NoisyLinearImputer",
    "OptiCAM",
    "OutputPartTarget",
    "overlay",
    "ParameterRandomisation",
    "pick_reshape",
    "picker",
    "picker_figure",
    "PointingGame",
    "Preprocess",
    "preprocess_for",
    "preprocess_image",
    "RandomCAM",
    "RawScoresOutputTarget",
    "read_image",
    "ReciproCAM",
    "Record",
    "record",
    "RefineCAM",
    "RegressionOutputTarget",
    "RelevanceMass",
    "RelevanceRank",
    "replay",
    "RISE",
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
    "run_dff_on_image",
    "ScoreCAM",
    "SegEigenCAM",
    "SemanticSegmentationTarget",
    "sequence_first_reshape_transform",
    "SESS",
    "ShapleyCAM",
    "show_cam_on_image",
    "show_factorization_on_image",
    "signal_reshape_transform",
    "SimilarityTarget",
    "SmoothGradCAMPlusPlus",
    "Sobel",
    "SoftmaxOutputTarget",
    "Sparseness",
    "SSCAM",
    "Sufficiency",
    "suggest_layer",
    "swin_reshape_transform",
    "to_boxes",
    "to_mask",
    "token_order_reshape_transform",
    "verify_layout",
    "vit_reshape_transform",
    "volume_tokens_reshape_transform",
    "XGradCAM",
    "yolo_candidates",
    "yolov8_candidates",
]

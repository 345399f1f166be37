"""What in a picture made a PyTorch model say what it said, and whether that picture can be trusted."""

__version__ = "0.1.0"

from .compare import compare, compare_layers
from .core.cam import BaseCAM
from .core.record import Record, record
from .core.replay import replay
from .explain import explain, list_methods
from .explanation import Explanation
from .imaging.figure import grid
from .imaging.overlay import overlay, show_cam_on_image
from .imaging.preprocess import Preprocess, deprocess_image, preprocess_for, preprocess_image
from .imaging.read import read_image
from .imaging.regions import to_boxes, to_mask
from .layers import list_layers, suggest_layer
from .methods.ablationcam import AblationCAM
from .methods.attention_relevance import AttentionRelevance
from .methods.attention_rollout import AttentionRollout
from .methods.cam import CAM
from .methods.deep_feature_factorization import DeepFeatureFactorization, run_dff_on_image, show_factorization_on_image
from .methods.drise import DRISE
from .methods.eigen_gradcam import EigenGradCAM
from .methods.eigencam import EigenCAM
from .methods.fem import FEM
from .methods.finercam import FinerCAM
from .methods.fullgrad import FullGrad
from .methods.grad_eclip import GradECLIP
from .methods.gradcam import GradCAM
from .methods.gradcam_elementwise import GradCAMElementWise
from .methods.gradcam_plusplus import GradCAMPlusPlus
from .methods.gscorecam import GScoreCAM
from .methods.guided_backprop import GuidedBackpropReLUModel
from .methods.guided_gradcam import GuidedGradCAM
from .methods.hirescam import HiResCAM
from .methods.iscam import ISCAM
from .methods.kpca_cam import KPCA_CAM
from .methods.layercam import LayerCAM
from .methods.legrad import LeGrad
from .methods.opticam import OptiCAM
from .methods.random_cam import RandomCAM
from .methods.reciprocam import ReciproCAM
from .methods.refinecam import RefineCAM
from .methods.rise import RISE
from .methods.scorecam import ScoreCAM
from .methods.seg_eigencam import SegEigenCAM
from .methods.sess import SESS
from .methods.shapleycam import ShapleyCAM
from .methods.smooth_gradcam_plusplus import SmoothGradCAMPlusPlus
from .methods.sobel import Sobel
from .methods.sscam import SSCAM
from .methods.xgradcam import XGradCAM
from .metrics.arcc import ADCC, ARCC
from .metrics.benchmark import benchmark, list_metrics
from .metrics.coherency import Coherency
from .metrics.complexity import Complexity
from .metrics.comprehensiveness import Comprehensiveness
from .metrics.confidence_change import CamMultImageConfidenceChange, multiply_tensor_with_cam
from .metrics.consistency import Consistency
from .metrics.deletion import Deletion
from .metrics.drop import DropInConfidence
from .metrics.energy_inside import EnergyInside
from .metrics.imputation import NoisyLinearImputer
from .metrics.increase import IncreaseInConfidence
from .metrics.infidelity import Infidelity
from .metrics.insertion import Insertion
from .metrics.iou import BestIoU, IoU
from .metrics.max_sensitivity import MaxSensitivity
from .metrics.metric import Metric
from .metrics.parameter_randomisation import ParameterRandomisation
from .metrics.pointing_game import PointingGame
from .metrics.rank_accuracy import RelevanceRank
from .metrics.relevance_mass import RelevanceMass
from .metrics.road import ROADCombined, ROADLeastRelevantFirst, ROADLeastRelevantFirstAverage, ROADMostRelevantFirst, ROADMostRelevantFirstAverage
from .metrics.sparseness import Sparseness
from .metrics.sufficiency import Sufficiency
from .models import load_model
from .reshape.channels_last import channels_last_reshape_transform
from .reshape.fpn import fpn_reshape_transform
from .reshape.pick import pick_reshape
from .reshape.sequence_first import sequence_first_reshape_transform
from .reshape.signal import signal_reshape_transform
from .reshape.swin import swin_reshape_transform
from .reshape.vit import vit_reshape_transform
from .reshape.volume_tokens import volume_tokens_reshape_transform
from .smoothing.augment import mirrored_and_scaled
from .smoothing.noise import noisy
from .targets.binary import BinaryClassifierOutputTarget
from .targets.box import BoxTarget
from .targets.candidates import BeforeSuppression
from .targets.classifier import ClassifierOutputTarget
from .targets.contrast import ContrastTarget
from .targets.detection import DetectionTarget
from .targets.faster_rcnn import FasterRCNNBoxScoreTarget
from .targets.finer_weighted import FinerWeightedTarget
from .targets.heads import detr_candidates, yolo_candidates, yolov8_candidates
from .targets.image_text import ImageTextClassifier, ImageTextTarget
from .targets.instance_mask import InstanceMaskTarget
from .targets.multi_label import MultiLabelOutputTarget
from .targets.part import OutputPartTarget
from .targets.raw import RawScoresOutputTarget
from .targets.regression import RegressionOutputTarget
from .targets.rest import ClassifierOutputReST
from .targets.segmentation import SemanticSegmentationTarget
from .targets.similarity import DifferenceTarget, SimilarityTarget
from .targets.softmax import ClassifierOutputSoftmaxTarget, SoftmaxOutputTarget
from .targets.token import GeneratedTokenTarget
from .widgets.explore import explore
from .widgets.picker import method_images, picker, picker_figure
from . import compat

__all__ = [
    "AblationCAM", "ADCC", "ARCC", "AttentionRelevance", "AttentionRollout", "BaseCAM", "BeforeSuppression",
    "benchmark", "BestIoU", "BinaryClassifierOutputTarget", "BoxTarget", "CAM",
    "CamMultImageConfidenceChange", "channels_last_reshape_transform", "compat", "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget", "ClassifierOutputTarget", "Coherency", "compare", "compare_layers",
    "Complexity", "Comprehensiveness", "Consistency", "ContrastTarget", "DeepFeatureFactorization",
    "Deletion", "deprocess_image", "DetectionTarget", "detr_candidates", "DifferenceTarget", "DRISE",
    "DropInConfidence", "EigenCAM", "EigenGradCAM", "EnergyInside", "explain", "Explanation", "explore",
    "FasterRCNNBoxScoreTarget", "FEM", "FinerCAM", "FinerWeightedTarget", "fpn_reshape_transform", "FullGrad",
    "GeneratedTokenTarget", "GradCAM", "GradCAMElementWise", "GradCAMPlusPlus", "GradECLIP", "grid",
    "GScoreCAM", "GuidedBackpropReLUModel", "GuidedGradCAM", "HiResCAM", "ImageTextClassifier",
    "ImageTextTarget", "IncreaseInConfidence", "Infidelity", "Insertion", "InstanceMaskTarget", "IoU",
    "ISCAM", "KPCA_CAM", "LayerCAM", "LeGrad", "list_layers", "list_methods", "list_metrics", "load_model",
    "MaxSensitivity", "method_images", "Metric", "mirrored_and_scaled", "MultiLabelOutputTarget",
    "multiply_tensor_with_cam", "noisy", "NoisyLinearImputer", "OptiCAM", "OutputPartTarget", "overlay",
    "ParameterRandomisation", "pick_reshape", "picker", "picker_figure", "PointingGame", "Preprocess",
    "preprocess_for", "preprocess_image", "RandomCAM", "RawScoresOutputTarget", "read_image", "ReciproCAM",
    "Record", "record", "RefineCAM", "RegressionOutputTarget", "RelevanceMass", "RelevanceRank", "replay",
    "RISE", "ROADCombined", "ROADLeastRelevantFirst", "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst", "ROADMostRelevantFirstAverage", "run_dff_on_image", "ScoreCAM", "SegEigenCAM",
    "SemanticSegmentationTarget", "sequence_first_reshape_transform", "SESS", "ShapleyCAM", "show_cam_on_image",
    "show_factorization_on_image", "signal_reshape_transform", "SimilarityTarget", "SmoothGradCAMPlusPlus",
    "Sobel", "SoftmaxOutputTarget", "Sparseness", "SSCAM", "Sufficiency", "suggest_layer",
    "swin_reshape_transform", "to_boxes", "to_mask", "vit_reshape_transform",
    "volume_tokens_reshape_transform", "XGradCAM", "yolo_candidates", "yolov8_candidates",
]

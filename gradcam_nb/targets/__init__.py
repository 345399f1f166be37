"""The targets, a file each: this is the list of them."""

from .before_suppression import BeforeSuppression
from .binary import BinaryClassifierOutputTarget
from .box import BoxTarget
from .candidates import detr_candidates, yolo_candidates, yolov8_candidates
from .classifier import ClassifierOutputTarget
from .contrast import ContrastTarget
from .detection import DetectionTarget
from .faster_rcnn import FasterRCNNBoxScoreTarget
from .finer_weighted import FinerWeightedTarget
from .image_text import ImageTextClassifier, ImageTextTarget
from .instance_mask import InstanceMaskTarget
from .multi_label import MultiLabelOutputTarget
from .output_part import OutputPartTarget
from .raw import RawScoresOutputTarget
from .regression import RegressionOutputTarget
from .residual_softmax import ClassifierOutputReST
from .segmentation import SemanticSegmentationTarget
from .similarity import DifferenceTarget, SimilarityTarget
from .softmax import ClassifierOutputSoftmaxTarget, SoftmaxOutputTarget
from .token import GeneratedTokenTarget

__all__ = [
    "BeforeSuppression",
    "BinaryClassifierOutputTarget",
    "BoxTarget",
    "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget",
    "ClassifierOutputTarget",
    "ContrastTarget",
    "DetectionTarget",
    "detr_candidates",
    "DifferenceTarget",
    "FasterRCNNBoxScoreTarget",
    "FinerWeightedTarget",
    "GeneratedTokenTarget",
    "ImageTextClassifier",
    "ImageTextTarget",
    "InstanceMaskTarget",
    "MultiLabelOutputTarget",
    "OutputPartTarget",
    "RawScoresOutputTarget",
    "RegressionOutputTarget",
    "SemanticSegmentationTarget",
    "SimilarityTarget",
    "SoftmaxOutputTarget",
    "yolo_candidates",
    "yolov8_candidates",
]

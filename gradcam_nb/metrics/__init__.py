"""The metrics, a file each: this is the list of them."""

from .arcc import ADCC, ARCC
from .benchmark import benchmark
from .coherency import Coherency
from .complexity import Complexity
from .comprehensiveness import Comprehensiveness
from .confidence_change import CamMultImageConfidenceChange, multiply_tensor_with_cam
from .consistency import Consistency
from .deletion import Deletion
from .drop import DropInConfidence
from .energy_inside import EnergyInside
from .imputation import NoisyLinearImputer
from .increase import IncreaseInConfidence
from .infidelity import Infidelity
from .insertion import Insertion
from .iou import BestIoU, IoU
from .max_sensitivity import MaxSensitivity
from .metric import Metric
from .parameter_randomisation import ParameterRandomisation
from .pointing_game import PointingGame
from .rank_accuracy import RelevanceRank
from .relevance_mass import RelevanceMass
from .road import ROADCombined, ROADLeastRelevantFirst, ROADLeastRelevantFirstAverage, ROADMostRelevantFirst, ROADMostRelevantFirstAverage
from .sparseness import Sparseness
from .sufficiency import Sufficiency

__all__ = [
    "ADCC",
    "ARCC",
    "benchmark",
    "BestIoU",
    "CamMultImageConfidenceChange",
    "Coherency",
    "Complexity",
    "Comprehensiveness",
    "Consistency",
    "Deletion",
    "DropInConfidence",
    "EnergyInside",
    "IncreaseInConfidence",
    "Infidelity",
    "Insertion",
    "IoU",
    "MaxSensitivity",
    "Metric",
    "multiply_tensor_with_cam",
    "NoisyLinearImputer",
    "ParameterRandomisation",
    "PointingGame",
    "RelevanceMass",
    "RelevanceRank",
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
    "Sparseness",
    "Sufficiency",
]

"""The methods, a file each: this is the list of them."""

from .ablationcam import AblationCAM
from .attention_relevance import AttentionRelevance
from .attention_rollout import AttentionRollout
from .cam import CAM
from .deep_feature_factorization import DeepFeatureFactorization, run_dff_on_image, show_factorization_on_image
from .drise import DRISE
from .eigen_gradcam import EigenGradCAM
from .eigencam import EigenCAM
from .fem import FEM
from .finercam import FinerCAM
from .fullgrad import FullGrad
from .grad_eclip import GradECLIP
from .gradcam import GradCAM
from .gradcam_elementwise import GradCAMElementWise
from .gradcam_plusplus import GradCAMPlusPlus
from .gscorecam import GScoreCAM
from .guided_backprop import GuidedBackpropReLUModel
from .guided_gradcam import GuidedGradCAM
from .hirescam import HiResCAM
from .iscam import ISCAM
from .kpca_cam import KPCA_CAM
from .layercam import LayerCAM
from .legrad import LeGrad
from .opticam import OptiCAM
from .random_cam import RandomCAM
from .reciprocam import ReciproCAM
from .refinecam import RefineCAM
from .rise import RISE
from .scorecam import ScoreCAM
from .seg_eigencam import SegEigenCAM
from .sess import SESS
from .shapleycam import ShapleyCAM
from .smooth_gradcam_plusplus import SmoothGradCAMPlusPlus
from .sobel import Sobel
from .sscam import SSCAM
from .xgradcam import XGradCAM

__all__ = [
    "AblationCAM",
    "AttentionRelevance",
    "AttentionRollout",
    "CAM",
    "DeepFeatureFactorization",
    "DRISE",
    "EigenCAM",
    "EigenGradCAM",
    "FEM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GradECLIP",
    "GScoreCAM",
    "GuidedBackpropReLUModel",
    "GuidedGradCAM",
    "HiResCAM",
    "ISCAM",
    "KPCA_CAM",
    "LayerCAM",
    "LeGrad",
    "OptiCAM",
    "RandomCAM",
    "ReciproCAM",
    "RefineCAM",
    "RISE",
    "run_dff_on_image",
    "ScoreCAM",
    "SegEigenCAM",
    "SESS",
    "ShapleyCAM",
    "show_factorization_on_image",
    "SmoothGradCAMPlusPlus",
    "Sobel",
    "SSCAM",
    "XGradCAM",
]

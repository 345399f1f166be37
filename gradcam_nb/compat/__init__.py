"""Other libraries' interfaces on top of this one: `install()` answers `import pytorch_grad_cam`; `GradCAM` is the one-object interface."""

from .pytorch_grad_cam.install import install, uninstall
from .one_object import GradCAM

__all__ = ["GradCAM", "install", "uninstall"]

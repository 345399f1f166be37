"""`python -m gradcam_nb.compat SCRIPT`: a script with `pytorch_grad_cam` answered by this package."""
import sys

from .pytorch_grad_cam.install import run_script

if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:]))

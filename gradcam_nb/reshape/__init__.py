"""The reshape transforms, a file each: this is the list of them."""

from .channels_last import channels_last_reshape_transform
from .fpn import fpn_reshape_transform
from .pick import pick_reshape
from .sequence_first import sequence_first_reshape_transform
from .signal import signal_reshape_transform
from .swin import swin_reshape_transform
from .token_order import token_order_reshape_transform
from .vit import vit_reshape_transform
from .volume_tokens import volume_tokens_reshape_transform

__all__ = [
    "channels_last_reshape_transform",
    "fpn_reshape_transform",
    "pick_reshape",
    "sequence_first_reshape_transform",
    "signal_reshape_transform",
    "swin_reshape_transform",
    "token_order_reshape_transform",
    "vit_reshape_transform",
    "volume_tokens_reshape_transform",
]

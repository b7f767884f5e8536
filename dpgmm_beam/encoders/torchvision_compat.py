"""Makes `import torchvision` work beside a torch build that it was not compiled for.

torchvision's wheel beside a CPU-only torch of another build cannot load its
compiled operators and then fails while describing them ("operator
torchvision::nms does not exist").  open_clip imports torchvision for its image
transforms only, so it is enough that the two operators are declared.
"""

import functools
import importlib


@functools.cache
def import_torchvision() -> None:
    """Imports torchvision, declaring its two missing operators if that is what it fails on.

    Raises:
      ImportError, RuntimeError: torchvision fails for any other reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _declare_operators()
        importlib.import_module("torchvision")


@functools.cache
def _declare_operators():
    import torch

    # The cache keeps the library alive: its operators vanish with it.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library

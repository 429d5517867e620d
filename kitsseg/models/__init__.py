"""One builder per paper; importing this package alone does not import Keras."""

from importlib import import_module

__all__ = [
    "build_deeplab3d",
    "build_enhanced_unet",
    "build_squeeze_unet",
    "build_unet2d",
    "build_unet3d",
    "build_wp_unet",
]


def __getattr__(name):
    """Import a builder on first use (PEP 562): ``build_NAME`` lives in the module ``NAME``."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.removeprefix('build_')}"), name)


def __dir__():
    return sorted([*globals(), *__all__])

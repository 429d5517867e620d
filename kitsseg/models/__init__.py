"""One builder per paper.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.models.deeplab3d import build_deeplab3d
    from kitsseg.models.enhanced_unet import AttentionGates, build_enhanced_unet
    from kitsseg.models.loading import read_network
    from kitsseg.models.macs import count_macs
    from kitsseg.models.squeeze_unet import build_squeeze_unet
    from kitsseg.models.unet2d import SubBlock, build_unet2d
    from kitsseg.models.unet3d import build_unet3d
    from kitsseg.models.wp_unet import build_wp_unet

__all__ = [
    "AttentionGates",
    "SubBlock",
    "build_deeplab3d",
    "build_enhanced_unet",
    "build_squeeze_unet",
    "build_unet2d",
    "build_unet3d",
    "build_wp_unet",
    "count_macs",
    "read_network",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "AttentionGates": "kitsseg.models.enhanced_unet",
        "SubBlock": "kitsseg.models.unet2d",
        "build_deeplab3d": "kitsseg.models.deeplab3d",
        "build_enhanced_unet": "kitsseg.models.enhanced_unet",
        "build_squeeze_unet": "kitsseg.models.squeeze_unet",
        "build_unet2d": "kitsseg.models.unet2d",
        "build_unet3d": "kitsseg.models.unet3d",
        "build_wp_unet": "kitsseg.models.wp_unet",
        "count_macs": "kitsseg.models.macs",
        "read_network": "kitsseg.models.loading",
    },
)

"""Options of a prediction."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from kitsseg.labels.volumes import Cleanup

__all__ = ["PredictOptions"]


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How scans are segmented. The options are the same for one scan and for a cohort, here and on a cluster.

    Attributes:
        whole_slices: compute whole slices even if the recipe states overlapping tiles; about three times faster, and
            slightly different at the tiles' borders.
        mirror: True or False overrides the recipe's test-time mirroring (of rows and columns).
        refine_labels: False leaves the recipe's post-processing out, True insists that there is some.
        coarse: True or False overrides the recipe's coarse pass.
        engine: what computes the networks, one of ``engines.ENGINES``; None: see ``ensemble.computed_as``. "auto":
            for each network the fastest engine on this machine whose labels agree with those of the default engine,
            found out with the first scan and kept beside the network (``kitsseg.inference.fastest``).
            ``predictions.json`` names the engine.
        precision: "bfloat16" computes the networks of runs in it. Once for a run its labels are compared with those of
            float32, and refused where they differ (``kitsseg.inference.precision``).
        also: more runs, of the same or other recipes: probabilities are averaged on the scan's voxels, every run
            counts the same, and the post-processing is that of the first run.
        shard: (i, n): job i of n, from 0, that share the scans and the folder.
        scheduler: address of a Dask scheduler whose workers segment the scans.
        remove_small_mm3: pieces, of kidney and tumor together, that are smaller are removed from the label maps.
        tumors_on_kidneys: tumors that touch no kidney are removed from the label maps.
        statistics: write the volumes of kidneys and tumors of all label maps as ``statistics.csv`` and ``.json``.
        dicom_seg: write a DICOM Segmentation object of each DICOM series beside its label map.
        overwrite: segment scans again that have a label map, and replace any file with the name of a label map.
    """

    whole_slices: bool = False
    mirror: bool | None = None
    refine_labels: bool | None = None
    coarse: bool | None = None
    engine: str | None = None
    precision: str = "float32"
    also: Sequence[str | os.PathLike[str]] = ()
    shard: tuple[int, int] | None = None
    scheduler: str | None = None
    remove_small_mm3: float = 0.0
    tumors_on_kidneys: bool = False
    statistics: bool = False
    dicom_seg: bool = False
    overwrite: bool = False

    @property
    def cleanup(self) -> Cleanup | None:
        """The pieces that are removed from label maps; None for nothing."""
        wanted = Cleanup(remove_small_mm3=self.remove_small_mm3, tumors_on_kidneys=self.tumors_on_kidneys)
        return None if wanted == Cleanup() else wanted

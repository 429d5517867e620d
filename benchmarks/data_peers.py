"""The loaders that ``benchmarks/data.py`` compares with, each as its own users write it, on the same cached cases.

A peer is a function from the cases, their SliceBatches or PatchBatches and a folder to a function that makes one
batch: float32 images, clipped and scaled, and integer labels. It raises ImportError where the library is missing.
The ``draw`` of our batches chooses the slices for the peers, too: 5 of 7 are positive. All later steps are the
library's own.
"""

import itertools
from typing import Any

import numpy as np

from kitsseg.data.sampling.augment import batchgenerators_transform

__all__ = ["PATCHES", "SLICES"]

SIZE = (224, 224)


def whole_slice(case, k):
    """A slice and its labels, (1, rows, columns) each, as a loader of full slices reads them."""
    return case.image[k][None].astype(np.float32), case.labels(k)[None]


def clipped(images, spec):
    np.clip(images, *spec.hu_window, out=images)
    images -= np.float32(spec.hu_mean)
    images /= np.float32(spec.hu_std)
    return images


def batchgenerators(order, workers=0):
    """The authors' library: whole slices, then SpatialTransform and MirrorTransform on the batch."""

    def make(cases, batches, folder):
        from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
        from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
        from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose

        class Normalize(AbstractTransform):
            def __call__(self, **batch):
                return batch | {"data": clipped(batch["data"].astype(np.float32, copy=False), batches.spec)}

        class Loader:
            def __init__(self):
                self.index, self.thread_id = -1, 0

            def set_thread_id(self, thread_id):
                self.thread_id = thread_id

            def __iter__(self):
                return self

            def __next__(self):
                self.index += 1
                slices = [whole_slice(batches.cases[case], k) for case, k in batches.draw(self.index)]
                images, labels = (np.stack(arrays) for arrays in zip(*slices, strict=True))
                return {"data": images, "seg": labels}

        spatial_and_mirror: Any = batchgenerators_transform(SIZE, batches.augmentation)
        spatial_and_mirror.transforms[0].order_data = order
        transform = Compose([spatial_and_mirror, Normalize()])
        if workers:
            augmenter = MultiThreadedAugmenter(Loader(), transform, workers, num_cached_per_queue=2)
        else:
            augmenter = SingleThreadedAugmenter(Loader(), transform)
        return augmenter.__next__

    return make


def batchgeneratorsv2(cases, batches, folder):
    """Its successor, one slice at a time on torch tensors; linear, and nearest for the labels."""
    import torch
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    torch.set_num_threads(1)
    spatial = SpatialTransform(
        SIZE,
        patch_center_dist_from_border=[m // 2 for m in SIZE],
        random_crop=True,
        p_scaling=batches.augmentation.scale_probability,
        scaling=batches.augmentation.scale_range,
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
        padding_mode_image="border",
    )
    mirror, numbers = MirrorTransform((0, 1)), itertools.count()

    def batch():
        images, labels = [], []
        for case, k in batches.draw(next(numbers)):
            image, truth = (torch.from_numpy(array) for array in whole_slice(batches.cases[case], k))
            sample = mirror(**spatial(image=image, segmentation=truth.to(torch.int16)))
            images.append(torch.from_numpy(clipped(sample["image"].numpy(), batches.spec)))
            labels.append(sample["segmentation"])
        return torch.stack(images), torch.stack(labels)

    return batch


def monai_slices(as_people_use_it):
    """CacheDataset of 2D slices: the deterministic transforms are cached in memory, the random ones are not.

    As people use it, with metadata and a deep copy of each cached item; or without both.
    """
    track_meta = as_people_use_it

    def make(cases, batches, folder):
        import monai.data
        import torch
        from monai import transforms

        torch.set_num_threads(1)
        low, high = batches.spec.hu_window
        scaled = [(hu - batches.spec.hu_mean) / batches.spec.hu_std for hu in (low, high)]
        keys, p = ["image", "label"], batches.augmentation.flip_probability
        zoom = [1 / factor for factor in reversed(batches.augmentation.scale_range)]
        chain = transforms.Compose(
            [
                transforms.ScaleIntensityRanged("image", low, high, *scaled, clip=True),
                transforms.EnsureTyped(keys, track_meta=track_meta),
                transforms.RandSpatialCropd(keys, SIZE, random_size=False),
                transforms.RandZoomd(
                    keys,
                    prob=batches.augmentation.scale_probability,
                    min_zoom=zoom[0],
                    max_zoom=zoom[1],
                    mode=("bilinear", "nearest"),
                    padding_mode="edge",
                ),
                transforms.RandFlipd(keys, p, 0),
                transforms.RandFlipd(keys, p, 1),
            ]
        )
        items = [
            dict(zip(keys, whole_slice(case, k), strict=True))
            for case in batches.cases
            for k in range(case.geometry.shape[0])
        ]
        first = np.cumsum([0, *(case.geometry.shape[0] for case in batches.cases)])

        class Drawn(torch.utils.data.Sampler):
            def __iter__(self):
                for index in itertools.count():
                    yield [int(first[case]) + k for case, k in batches.draw(index)]

        monai.data.set_track_meta(track_meta)
        dataset = monai.data.CacheDataset(
            items, chain, copy_cache=as_people_use_it, progress=False, num_workers=1
        )
        stream = iter(monai.data.DataLoader(dataset, batch_sampler=Drawn(), num_workers=0))

        def batch():
            monai.data.set_track_meta(track_meta)  # a setting of the whole process
            return next(stream)

        return batch

    return make


def monai_patches(track_meta):
    """CacheDataset of volumes with RandCropByLabelClasses on cached indices: three patches of each case.

    Without a deep copy of each cached volume and of its indices, which takes 40 times as long as all the rest.
    """

    def make(cases, batches, folder):
        import monai.data
        import torch
        from monai import transforms

        torch.set_num_threads(1)
        low, high = batches.spec.hu_window
        scaled = [(hu - batches.spec.hu_mean) / batches.spec.hu_std for hu in (low, high)]
        keys = ["image", "label"]
        chain = transforms.Compose(
            [
                transforms.ScaleIntensityRanged("image", low, high, *scaled, clip=True),
                transforms.SpatialPadd(keys, batches.patch_size),
                transforms.ClassesToIndicesd("label", num_classes=3),
                transforms.EnsureTyped(keys, track_meta=track_meta),
                transforms.RandCropByLabelClassesd(
                    keys,
                    "label",
                    spatial_size=batches.patch_size,
                    ratios=[1, 1, 1],
                    num_classes=3,
                    num_samples=3,
                    indices_key="label_cls_indices",
                ),
                transforms.DeleteItemsd("label_cls_indices"),
            ]
        )
        items = [
            {"image": case.image[None].astype(np.float32), "label": whole_labels(case)[None]}
            for case in batches.cases
        ]
        monai.data.set_track_meta(track_meta)
        dataset = monai.data.CacheDataset(items, chain, copy_cache=False, progress=False, num_workers=1)
        size = batches.sampler.cases_per_batch
        stream = iter(())

        def batch():
            nonlocal stream
            monai.data.set_track_meta(track_meta)
            found = next(stream, None)
            if found is None:
                stream = iter(monai.data.DataLoader(dataset, batch_size=size, shuffle=True, drop_last=True))
                found = next(stream)
            return found

        return batch

    return make


def nnunet_patches(cases, batches, folder):
    """nnU-Net's data set on disk and its loader, two thirds of the patches on foreground, without transforms."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    for case in batches.cases:
        image = clipped(case.image[None].astype(np.float32), batches.spec)
        labels = whole_labels(case)[None].astype(np.int8)
        found = DefaultPreprocessor._sample_foreground_locations(labels, [1, 2])
        layout = comp_blosc2_params(image.shape, batches.patch_size)
        label_layout = comp_blosc2_params(labels.shape, batches.patch_size, labels.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image,
            labels,
            {"class_locations": found},
            str(folder / case.name),
            chunks=layout[1],
            blocks=layout[0],
            chunks_seg=label_layout[1],
            blocks_seg=label_layout[0],
        )
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        batches.form.batch_size,
        batches.patch_size,
        batches.patch_size,
        LabelManager({"background": 0, "kidney": 1, "tumor": 2}, None),
        oversample_foreground_percent=2 / 3,
    )
    return loader.generate_train_batch


def whole_labels(case):
    return np.stack([case.labels(k) for k in range(case.geometry.shape[0])])


# name, peer, and the target: how many times as fast as the peer ours shall be; None: no target
SLICES = [
    ("batchgenerators, order 3", batchgenerators(3), 5),
    ("batchgenerators, order 1", batchgenerators(1), 3),
    ("batchgenerators, order 3, one worker", batchgenerators(3, workers=1), None),
    ("batchgeneratorsv2", batchgeneratorsv2, 2),
    ("MONAI CacheDataset", monai_slices(True), 8),
    ("MONAI, metadata and copies off", monai_slices(False), 2.5),
]
PATCHES = [
    ("MONAI, copies off", monai_patches(True), 3.5),
    ("MONAI, metadata and copies off", monai_patches(False), None),
    ("nnU-Net's loader", nnunet_patches, 5),
]

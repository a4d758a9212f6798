"""Temporary: old names, until all imports are adapted."""
from importlib import import_module

_MAP = {'Batch': 'prune_fe.data.batches:Batch', 'Batches': 'prune_fe.data.batches:Batches', 'Images': 'prune_fe.data.batches:Images', 'loader': 'prune_fe.data.batches:make_loader', 'checked': 'prune_fe.data.batches:validate_batches', 'images_in': 'prune_fe.data.batches:count_images', 'first_images': 'prune_fe.data.batches:first_image', 'Splits': 'prune_fe.data.splits:Splits', 'held_out': 'prune_fe.data.splits:hold_out', 'split': 'prune_fe.data.splits:split_by_class', 'targets_of': 'prune_fe.data.labels:image_labels', 'has_targets': 'prune_fe.data.labels:has_labels', 'image_names': 'prune_fe.data.labels:image_names', 'class_names': 'prune_fe.data.labels:class_names', 'select': 'prune_fe.data.sampling:select_batches', 'choose': 'prune_fe.data.sampling:choose_images', 'named': 'prune_fe.data.sampling:select_by_name', 'InMemory': 'prune_fe.data.datasets:InMemory', 'Rescaled': 'prune_fe.data.datasets:Rescaled', 'Normalise': 'prune_fe.data.transforms:Normalise', 'Pixels': 'prune_fe.data.transforms:ResizeToPixels', 'read_image': 'prune_fe.data.transforms:read_image', 'IMAGENET_MEAN': 'prune_fe.data.transforms:IMAGENET_MEAN', 'IMAGENET_STD': 'prune_fe.data.transforms:IMAGENET_STD', 'digits': 'prune_fe.data.digits:digits', 'folder': 'prune_fe.data.image_folder:folder', 'cifar10': 'prune_fe.data.cifar:cifar10', 'SLACK_BYTES': 'prune_fe.data.archive:SLACK_BYTES', 'unpacked': 'prune_fe.data.archive:unpack'}


def __getattr__(name):
    if name not in _MAP:
        raise AttributeError(name)
    module, new = _MAP[name].split(":")
    return getattr(import_module(module), new)

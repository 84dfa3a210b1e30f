"""Small images held as one tensor and preprocessed a batch at a time, which is many times faster than one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from prune2deploy.data.splits import Normalization, Samples, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallImageAugmentation:
    """A shift by up to ``padding`` pixels (of the original image, filled with black) and, if ``flip``, a mirroring.

    The distributions of ``v2.RandomCrop(size, padding)`` and ``v2.RandomHorizontalFlip()``, drawn for a batch at once.
    Source: He et al. 2016, section 4.2, with padding 4 and flip.
    """

    padding: int
    flip: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Augment each image of a batch on its own. Shape: (N, C, H, W), kept."""
        count, channels, height, width = images.shape
        offsets = torch.randint(0, 2 * self.padding + 1, (2, count, 1))
        rows = (offsets[0] + torch.arange(height))[:, None, :, None]
        columns = (offsets[1] + torch.arange(width))[:, None, None, :]
        padded = functional.pad(images, [self.padding])
        shifted: Tensor = padded[
            torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns
        ]
        if not self.flip:
            return shifted
        mirrored = torch.rand(count, 1, 1, 1) < 0.5
        return torch.where(mirrored, functional.horizontal_flip(shifted), shifted)


class InMemorySamples(Samples):
    """Images of one size, as they came, brought to the model's input when they are read.

    Shapes: ``images`` (N, C, H, W), uint8 or float32 in [0, 1]; ``labels`` (N,) int64; the samples have
    ``input_shape``, whose channel count is C or, from one channel, 3.
    """

    def __init__(
        self,
        *,
        images: Tensor,
        labels: Tensor,
        input_shape: Shape,
        normalization: Normalization,
        augmentation: SmallImageAugmentation | None = None,
    ) -> None:
        self._images = images
        self._labels = labels
        self._input_shape = input_shape
        self._normalization = normalization
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """A batch; torch's loader asks for it by this name."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self._images[chosen]
        if self._augmentation is not None:
            images = self._augmentation(images)
        channels, height, width = self._input_shape
        images = functional.to_dtype(images, torch.float32, scale=True)
        if images.shape[-2:] != (height, width):
            images = functional.resize(images, [height, width], antialias=True)
        if images.shape[1] != channels:
            images = images.expand(-1, channels, -1, -1)
        images = functional.normalize(images, list(self._normalization.mean), list(self._normalization.std))
        return list(zip(images.unbind(0), self._labels[chosen].tolist(), strict=True))

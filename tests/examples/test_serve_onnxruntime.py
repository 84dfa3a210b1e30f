"""The examples run as a stranger would run them: as programs, on files that the product wrote."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnxruntime.py"
DIGITS = load_digits()
MEAN, DEVIATION = 0.3, 0.4
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class NearestMean(nn.Module):
    """A real classifier without training: the class whose mean image is nearest, for any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        pixels = (DIGITS.images / 16 - MEAN) / DEVIATION
        means = np.stack([pixels[DIGITS.target == digit].mean(axis=0).ravel() for digit in range(10)])
        self.scores = nn.Linear(64 * channels, 10)
        with torch.no_grad():
            self.scores.weight.copy_(torch.from_numpy(np.tile(means, channels)))
            self.scores.bias.copy_(torch.from_numpy(-0.5 * channels * (means**2).sum(axis=1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores(images.flatten(1))


def exported(folder: Path, channels: int, metadata: dict[str, str], **others: object) -> Path:
    path = folder / "digits.onnx"
    passes = GraphPasses(normalize=((MEAN,) * channels, (DEVIATION,) * channels), softmax=True, **others)
    export_onnx(NearestMean(channels), path, input_shape=(channels, 8, 8), passes=passes, metadata=metadata)
    return path


def served(model: Path, *images: Path) -> list[tuple[float, str]]:
    """Probability and name of each line that the example prints."""
    output = subprocess.run(
        [sys.executable, str(EXAMPLE), str(model), *map(str, images)], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split("%  ") for line in output.splitlines()]
    return [(float(percent) / 100, name) for percent, name in rows]


def picture_of(digit: int, folder: Path) -> tuple[Path, np.ndarray]:
    """A PNG file of the first such digit, and its pixels in [0, 255]."""
    index = int(np.flatnonzero(DIGITS.target == digit)[0])
    pixels = (DIGITS.images[index] / 16 * 255).astype(np.uint8)
    path = folder / f"{digit}.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_pictures_of_digits_are_named_by_the_class_names_in_the_file(tmp_path: Path) -> None:
    model = exported(tmp_path, 1, {"class_names": json.dumps(CLASS_NAMES)})
    for digit in (0, 6):
        image, pixels = picture_of(digit, tmp_path)
        answers = served(model, image)
        assert len(answers) == 5
        assert answers[0][1] == CLASS_NAMES[digit]
        assert answers == sorted(answers, key=lambda answer: -answer[0])
        batch = torch.from_numpy((pixels.astype(np.float32) / 255 - MEAN) / DEVIATION)[None, None]
        with torch.inference_mode():
            expected = NearestMean(1)(batch).softmax(dim=1)[0, digit].item()
        assert answers[0][0] == pytest.approx(expected, abs=0.001)


def test_a_colour_network_without_class_names_is_served_by_number(tmp_path: Path) -> None:
    image, _ = picture_of(4, tmp_path)
    answers = served(exported(tmp_path, 3, {}), image)
    assert answers[0][1] == "class 4"


@pytest.mark.parametrize("size", [None, (16, 24)], ids=["own size", "resized in the file"])
def test_a_file_that_takes_bytes_is_only_given_what_was_decoded(size: tuple[int, int] | None, tmp_path: Path) -> None:
    model = exported(
        tmp_path, 1, {"class_names": json.dumps(CLASS_NAMES)}, top_k=3, input_format=BYTE_IMAGES, source_size=size
    )
    pictures = [picture_of(digit, tmp_path) for digit in (0, 6)]
    answers = served(model, *(image for image, _ in pictures))
    assert [name for _, name in answers[::3]] == ["zero", "six"]
    assert len(answers) == 6
    if size is None:
        batch = torch.from_numpy((pictures[1][1].astype(np.float32) / 255 - MEAN) / DEVIATION)[None, None]
        with torch.inference_mode():
            expected = NearestMean(1)(batch).softmax(dim=1)[0, 6].item()
        assert answers[3][0] == pytest.approx(expected, abs=0.001)


def test_several_images_are_served_at_once_by_a_file_that_takes_floats(tmp_path: Path) -> None:
    model = exported(tmp_path, 1, {"class_names": json.dumps(CLASS_NAMES)})
    answers = served(model, *(picture_of(digit, tmp_path)[0] for digit in (0, 6, 4)))
    assert [name for _, name in answers[::5]] == ["zero", "six", "four"]

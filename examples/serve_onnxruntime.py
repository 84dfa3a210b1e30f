"""Classify images with a file that ``p2d export`` wrote. Needs onnxruntime, NumPy and Pillow.

python serve_onnxruntime.py p2d-runs/latest/onnx/pruned-fp32.onnx photo.jpg ...

With ``--input uint8-nhwc --softmax --top-k 5`` the file does all but decoding; with ``--normalize --softmax`` it
takes float images.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model_path: str, *image_paths: str) -> None:
    """Print the most probable classes of each image, at most five."""
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    takes_bytes = model_input.type == "tensor(uint8)"
    height, width, channels = model_input.shape[1:] if takes_bytes else np.roll(model_input.shape[1:], -1)

    opened = [Image.open(path).convert("L" if channels == 1 else "RGB") for path in image_paths]
    images = np.stack([np.asarray(image.resize((width, height))).reshape(height, width, channels) for image in opened])
    if not takes_bytes:
        images = images.transpose(0, 3, 1, 2).astype(np.float32) / 255  # (images, channels, height, width), in [0, 1]

    scores, *rest = session.run(None, {model_input.name: images})
    classes = rest[0] if rest else np.argsort(-scores)[:, :5]
    scores = scores if rest else np.take_along_axis(scores, classes, axis=1)
    names = json.loads(session.get_modelmeta().custom_metadata_map.get("class_names", "[]"))
    for index, score in zip(classes.ravel(), scores.ravel(), strict=True):
        print(f"{score:6.1%}  {names[index] if names else f'class {index}'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

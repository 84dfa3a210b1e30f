"""Classify one image with a file that ``p2d export --normalize --softmax`` wrote. Needs onnxruntime, NumPy and Pillow.

python serve_onnxruntime.py p2d-runs/latest/onnx/pruned-fp32.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model_path: str, image_path: str) -> None:
    """Print the five most probable classes."""
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    _, channels, height, width = model_input.shape

    image = Image.open(image_path).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    batch = pixels.transpose(2, 0, 1)[np.newaxis]  # (1, channels, height, width), in [0, 1]

    (probabilities,) = session.run(None, {model_input.name: batch})
    names = json.loads(session.get_modelmeta().custom_metadata_map.get("class_names", "[]"))
    for index in np.argsort(-probabilities[0])[:5]:
        name = names[index] if len(names) == probabilities.shape[1] else f"class {index}"
        print(f"{probabilities[0, index]:6.1%}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])

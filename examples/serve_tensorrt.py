"""Classify one image with an engine that ``p2d build`` made of a file that ``p2d export --normalize --softmax`` wrote.

python serve_tensorrt.py p2d-runs/latest/engines/pruned-fp16-trt.engine photo.jpg

Needs tensorrt or tensorrt-rtx, cuda-bindings, NumPy and Pillow. Loading an engine runs native code: load only your own.
"""

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main(engine_path: str, image_path: str) -> None:
    """Print the five most probable classes."""
    content, record = Path(engine_path).read_bytes(), json.loads(Path(engine_path + ".json").read_text())
    if hashlib.sha256(content).hexdigest() != record["engine_sha256"]:
        sys.exit(f"{engine_path}: is damaged; build it again")
    tensorrt = importlib.import_module({"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}[record["engine"]])
    if tensorrt.__version__ != record["library_version"]:
        sys.exit(f"{engine_path}: was built by {record['library_version']}, here is {tensorrt.__version__}")
    from cuda.bindings import runtime as cuda

    def call(function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != cuda.cudaError_t.cudaSuccess:
            sys.exit(f"CUDA failed: {cuda.cudaGetErrorString(status)[1].decode()}; is there a GPU with a driver?")
        return results[0] if results else None

    call(cuda.cudaGetDeviceCount)
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        sys.exit(f"{engine_path}: cannot be loaded on this GPU; build it on this machine")
    context = engine.create_execution_context()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)

    _, channels, height, width = engine.get_tensor_shape(source)
    image = Image.open(image_path).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis])  # (1, channels, height, width), in [0, 1]
    if not context.set_input_shape(source, batch.shape):
        sys.exit(f"{engine_path}: its first profile takes no single image; build it with --batch 1")
    probabilities = np.empty(tuple(context.get_tensor_shape(target)), dtype=np.float32)

    stream = call(cuda.cudaStreamCreate)
    addresses = {name: call(cuda.cudaMalloc, a.nbytes) for name, a in ((source, batch), (target, probabilities))}
    for name, address in addresses.items():
        context.set_tensor_address(name, int(address))
    to_device, to_host = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    call(cuda.cudaMemcpy, addresses[source], batch.ctypes.data, batch.nbytes, to_device)
    context.execute_async_v3(int(stream))
    call(cuda.cudaStreamSynchronize, stream)
    call(cuda.cudaMemcpy, probabilities.ctypes.data, addresses[target], probabilities.nbytes, to_host)

    names = json.loads(record["details"]["metadata"].get("class_names", "[]"))
    for index in np.argsort(-probabilities[0])[:5]:
        name = names[index] if len(names) == probabilities.shape[1] else f"class {index}"
        print(f"{probabilities[0, index]:6.1%}  {name}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

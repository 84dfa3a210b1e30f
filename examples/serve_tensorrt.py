"""Classify one image with an engine that ``p2d build --batch 1`` made of a file of ``p2d export``.

The file was exported with --normalize, or with --input uint8-nhwc, and with --softmax or --top-k.

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
    source, *targets = (engine.get_tensor_name(number) for number in range(engine.num_io_tensors))

    takes_bytes = engine.get_tensor_dtype(source) == tensorrt.uint8
    sizes = tuple(engine.get_tensor_shape(source))[1:]
    height, width, channels = sizes if takes_bytes else (*sizes[1:], sizes[0])
    image = Image.open(image_path).convert("L" if channels == 1 else "RGB").resize((width, height))
    batch = np.asarray(image).reshape(1, height, width, channels)
    if not takes_bytes:
        batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / 255  # (1, channels, height, width), in [0, 1]
    if not context.set_input_shape(source, batch.shape):
        sys.exit(f"{engine_path}: its first profile takes no single image; build it with --batch 1")

    arrays = {source: np.ascontiguousarray(batch)}
    for name in targets:
        kind = tensorrt.nptype(engine.get_tensor_dtype(name))
        arrays[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype=kind)
    addresses = {name: call(cuda.cudaMalloc, array.nbytes) for name, array in arrays.items()}
    for name, address in addresses.items():
        context.set_tensor_address(name, int(address))
    stream = call(cuda.cudaStreamCreate)
    to_device, to_host = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    call(cuda.cudaMemcpy, addresses[source], arrays[source].ctypes.data, arrays[source].nbytes, to_device)
    if not context.execute_async_v3(int(stream)):
        sys.exit(f"{engine_path}: could not be run")
    call(cuda.cudaStreamSynchronize, stream)
    for name in targets:
        call(cuda.cudaMemcpy, arrays[name].ctypes.data, addresses[name], arrays[name].nbytes, to_host)

    scores, *rest = (arrays[name][0] for name in targets)
    classes = rest[0] if rest else np.argsort(-scores)[:5]
    class_names = json.loads(record["details"]["metadata"].get("class_names", "[]"))
    for index, score in zip(classes, scores if rest else scores[classes], strict=True):
        print(f"{score:6.1%}  {class_names[index] if class_names else f'class {index}'}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

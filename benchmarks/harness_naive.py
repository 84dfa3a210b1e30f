"""How most people compare two networks: time one, then the other, and divide the means.

    python benchmarks/harness_naive.py RUNS A.onnx B.onnx ...

Prints the mean milliseconds of each, as a JSON list. It knows nothing of this project, and that is its purpose.
"""

import json
import sys
import time

import numpy as np
import onnxruntime


def main(runs: int, paths: list[str]) -> None:
    """Time them and print."""
    means = []
    for path in paths:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        tensor = session.get_inputs()[0]
        image = np.random.default_rng(0).standard_normal((1, *tensor.shape[1:])).astype(np.float32)
        for _ in range(10):
            session.run(None, {tensor.name: image})
        begun = time.perf_counter()
        for _ in range(runs):
            session.run(None, {tensor.name: image})
        means.append((time.perf_counter() - begun) / runs * 1e3)
    print(json.dumps(means))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

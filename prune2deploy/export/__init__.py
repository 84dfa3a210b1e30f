"""From a module to an ONNX file that computes the same."""

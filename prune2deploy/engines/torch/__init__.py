"""PyTorch itself, which deployment is measured against: eager, compiled, or captured as a CUDA graph.

These engines run the bundle that an ONNX file was exported from, and not the file. The file says what the network
takes and gives, and of which weights it was made. This is the only room of the right half that uses torch, and it does
so inside functions.
"""

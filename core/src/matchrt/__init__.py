"""Image-matcher checkpoints to verified ONNX bundles and engines."""

"""TensorRT 8.6, 10 and 11, and TensorRT-RTX, through one adapter. Importing this package imports neither.

`_api` is the one module that imports a binding and reaches into it for names; `builder` builds, `runtime` runs,
`memory` speaks to the CUDA driver.
"""

"""What this machine and this Python have, lack, and how to repair it. Importing this package imports nothing of weight.

Versions come from the metadata of distributions. What must be imported to know more (native libraries, plugins, the CUDA driver) is
tried in a process of its own, so that a library that crashes is a finding and not the end of the examination.
"""

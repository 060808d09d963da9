"""Weights: read a file safely, rename by rules, account for every key, and fetch published files.

This module imports nothing. Use the modules directly:

* `rules` (no torch): what a plugin's `weight_rules` hook returns.
* `report`, `names`, `safetensors_header`, `fetch` (no torch): the account, name handling, header parsing, downloads.
* `readers`, `apply`, `account`, `fit` (torch): file to tensors, tensors to target names, target names to network.
* `describe`: what a file holds, without torch for safetensors.
"""

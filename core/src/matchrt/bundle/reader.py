"""Open a bundle: validate the manifest, the hash of every file, and that nothing points outside the folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from matchrt.bundle.external import external_locations
from matchrt.bundle.manifest import FILE_NAME, SCHEMA_VERSION, BundleManifest, NetworkContract
from matchrt.errors import BundleError

_CHUNK = 1 << 20
_MAX_MANIFEST = 32 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked."""

    path: Path
    manifest: BundleManifest
    sha256: str
    """Hash of `bundle.json`, which holds the hashes of the other files: it identifies the whole bundle."""

    def graph(self, network: str) -> Path:
        """Path of the ONNX file of `network`."""
        return self.path / self.manifest.network(network).file


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle in folder `path`. Raises `BundleError` naming what is wrong and what to do."""
    folder = Path(path)
    if folder.name == FILE_NAME and folder.is_file():
        folder = folder.parent
    if not folder.exists():
        raise BundleError(f"no bundle at {folder}: it does not exist", hint="make one with `matchrt convert`")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file, not a bundle", hint="`matchrt inspect` tells what a checkpoint is")
    text = _manifest_text(folder)
    manifest = parse_manifest(text, str(folder / FILE_NAME))
    for name, record in manifest.files.items():
        _check_file(folder, name, record.sha256, record.size)
    for network in manifest.networks:
        _check_network(folder, manifest, network)
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest())


def parse_manifest(text: bytes, where: str) -> BundleManifest:
    """The manifest in `text`. Raises `BundleError`: not JSON, of a newer schema, or not valid."""
    try:
        data = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON: {error}", hint="convert again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}, this matchrt reads up to {SCHEMA_VERSION}",
            hint="upgrade matchrt, or convert again with this version",
        )
    try:
        return BundleManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "top level"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BundleError(
            f"{where} is not a valid manifest: {place}: {first['msg']}{more}", hint="convert again"
        ) from None


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest_text(folder: Path) -> bytes:
    path = folder / FILE_NAME
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {FILE_NAME}", hint="make one with `matchrt convert`")
    if path.stat().st_size > _MAX_MANIFEST:
        raise BundleError(f"{path} is larger than {_MAX_MANIFEST >> 20} MiB; that is no manifest")
    return path.read_bytes()


def _check_file(folder: Path, name: str, sha256: str, size: int) -> None:
    path = folder / name
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise BundleError(f"the bundle {folder} lacks {name}", hint="copy the whole folder, or convert again") from None
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path} is not a plain file (links are refused)", hint="copy the real file into the bundle")
    if found.st_size != size:
        raise BundleError(
            f"{path} has {found.st_size} bytes, the manifest says {size}", hint="copy it again, or convert again"
        )
    if hash_file(path) != sha256:
        raise BundleError(
            f"{path} was changed after conversion: its sha256 is not the manifest's", hint="convert again"
        )


def _check_network(folder: Path, manifest: BundleManifest, network: NetworkContract) -> None:
    for name in filter(None, (network.file, network.external_data)):
        if name not in manifest.files:
            raise BundleError(f"network {network.name!r} of {folder} uses {name}, which the manifest does not list")
    allowed = {network.external_data} if network.external_data else set()
    outside = sorted(external_locations(folder / network.file) - allowed)
    if outside:
        raise BundleError(
            f"{network.file} of {folder} refers to data outside the bundle: {', '.join(map(repr, outside))}"
        )

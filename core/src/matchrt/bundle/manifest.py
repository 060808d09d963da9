"""`bundle.json`: everything that a program needs to run the ONNX files beside it. Published as a JSON Schema in `docs/`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
FILE_NAME = "bundle.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="A plain name inside the folder.")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorContract(_Part):
    """One input or output of a network."""

    name: str
    dtype: str = Field(description="numpy's name of the element type")
    shape: tuple[int | str, ...] = Field(description="sizes; a name stands for a dynamic axis, see `axes`")
    axes: tuple[str, ...] = Field(description="what each axis means")
    meaning: str = Field(description="what the values are, with units")


class AxisContract(_Part):
    """A dynamic axis: sizes from `min` to `max` in steps of `divisor`; `opt` is the size to tune for."""

    name: str
    min: int
    opt: int
    max: int
    divisor: int


class NetworkContract(_Part):
    """One ONNX file and its tensors."""

    name: str
    file: FileName
    external_data: FileName | None = Field(description="side file with the weights, where the graph exceeds 2 GB")
    opset: int
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]


class StepContract(_Part):
    """Run `network`; maps of the network's tensor names to names in the pair's namespace."""

    network: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class MatcherIdentity(_Part):
    """Which matcher this is."""

    id: str
    variant: str
    title: str
    family: Literal["sparse", "semi-dense", "dense"]
    licence: str
    paper: str


class SourceFile(_Part):
    """A checkpoint that the weights came from."""

    role: str
    filename: str
    sha256: Sha256
    size: int


class WeightsRecord(_Part):
    """Where the weights came from, and the account of every tensor."""

    sources: tuple[SourceFile, ...]
    random_seed: int | None = Field(
        description="not null: the weights are RANDOM, made from this seed; the bundle is for tests and speed only"
    )
    allow_missing: tuple[str, ...]
    licence: str
    report: dict[str, Any]


class AppliedRecord(_Part):
    """A patch or a graph pass that shaped the graph."""

    name: str
    reason: str
    exact: bool | None = None
    tolerance: float | None = None


class Conventions(_Part):
    """How to feed the networks and to read their answer."""

    coordinates: str
    preprocessing: str
    empty_result: str
    score: str


class FileRecord(_Part):
    """A file of the bundle."""

    sha256: Sha256
    size: int


class BundleManifest(_Part):
    """The whole of `bundle.json`."""

    schema_version: Literal[1]
    matcher: MatcherIdentity
    weights: WeightsRecord
    settings: dict[str, Any] = Field(description="settings baked at conversion")
    match_settings: dict[str, Any] = Field(
        description="settings that may be chosen at every match, with their defaults"
    )
    networks: tuple[NetworkContract, ...]
    axes: tuple[AxisContract, ...]
    steps: tuple[StepContract, ...]
    conventions: Conventions
    patches: tuple[AppliedRecord, ...]
    passes: tuple[AppliedRecord, ...]
    check: dict[str, Any] = Field(
        description="differences between the ONNX and the PyTorch network, measured at conversion"
    )
    tools: dict[str, str]
    created: str
    files: dict[FileName, FileRecord]

    @property
    def random_weights(self) -> bool:
        """Whether the weights are random: then matches mean nothing."""
        return self.weights.random_seed is not None

    def network(self, name: str) -> NetworkContract:
        """The network called `name`. Raises KeyError."""
        for network in self.networks:
            if network.name == name:
                return network
        raise KeyError(name)

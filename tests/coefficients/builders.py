"""Small bases and coefficient files for tests: three sites, no two sizes alike."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec, basis_metadata, read_basis_spec
from onebasis.coefficients.container import Container, RawTensor, read_container, write_container
from onebasis.coefficients.format import write_coefficients
from onebasis.coefficients.registry import TaskRegistry
from onebasis.coefficients.store import TaskStore
from onebasis.coefficients.validate import n_coefficients
from onebasis.core.ids import digest_of
from onebasis.core.residual import Residual

BASE = "tiny-base"
FINGERPRINT = "sha256:" + "b" * 64
SITES = (
    SiteSpec("layers.0.q_proj", d_in=12, d_out=10, k_in=3, k_out=2),
    SiteSpec("layers.0.up_proj", d_in=13, d_out=20, k_in=4, k_out=5),
    SiteSpec("layers.1.q_proj", d_in=14, d_out=11, k_in=6, k_out=7),
)
MIXED_SITES = tuple(replace(site, n_mix=n_mix) for site, n_mix in zip(SITES, (2, 3, 1), strict=True))
"""The same with mixing cores."""


def raw_tensor(values) -> RawTensor:
    dtype = {"float16": "F16", "float32": "F32", "float64": "F64", "int8": "I8"}[str(values.dtype)]
    return RawTensor(dtype, values.shape, values.tobytes())


def mixing_cores(site: SiteSpec, seed: int = 0, dtype=np.float16):
    shape = (site.n_mix + 1, site.k_out, site.k_in)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def basis_bytes(seed: int = 0, *, of=SITES, **metadata: str) -> bytes:
    """A basis file over these sites; `metadata` overrides single fields of its header."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for site in of:
        if site.n_mix:
            tensors[f"{site.name}.G"] = raw_tensor(mixing_cores(site, seed))
        for factor, shape in (("V", (site.k_in, site.d_in)), ("U", (site.k_out, site.d_out))):
            tensors[f"{site.name}.{factor}"] = raw_tensor(rng.standard_normal(shape).astype(np.float32))
    fields = basis_metadata(
        kind="random", base_model="tiny", base_fingerprint=FINGERPRINT, sites=of, report={"seed": seed}
    )
    return write_container(Container(fields | metadata, tensors))


def tiny_basis(folder: Path, seed: int = 0) -> BasisSpec:
    """The spec of a basis file written into `folder`."""
    path = folder / f"tiny-{seed}.basis.safetensors"
    path.write_bytes(basis_bytes(seed))
    return read_basis_spec(path)


def basis_spec(seed: int = 0) -> BasisSpec:
    """The same spec without a disk."""
    data = basis_bytes(seed)
    return BasisSpec(digest_of(data), len(data), "random", "tiny", FINGERPRINT, SITES, {"seed": seed})


def mixed_basis_spec(seed: int = 0) -> BasisSpec:
    """A basis with mixing cores, without a disk."""
    data = basis_bytes(seed, of=MIXED_SITES)
    mixing = {site.name: mixing_cores(site, seed) for site in MIXED_SITES}
    return BasisSpec(digest_of(data), len(data), "random", "tiny", FINGERPRINT, MIXED_SITES, {"seed": seed}, mixing)


def random_residual(site: SiteSpec, rank: int = 2, *, seed: int = 0, dtype=np.float16) -> Residual:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, site.d_in)), rng.standard_normal((site.d_out, rank))
    return Residual(a.astype(dtype), b.astype(dtype))


def coefficients(basis: BasisSpec, *, form="core", k=None, sites=None, seed=0, dtype=np.float16, **extra) -> bytes:
    """A coefficient file of random numbers that fits `basis`."""
    chosen = [site for site in basis.sites if sites is None or site.name in sites]
    n = sum(n_coefficients(form, site, k) for site in chosen)
    values = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    fields = {"basis": basis.digest, "base_fingerprint": basis.base_fingerprint} | extra
    return write_coefficients(values, form=form, k=k, sites=sites, **fields)


def edited(data: bytes, *, metadata=None, tensors=None, without=()) -> bytes:
    """The same file with fields and tensors put in, or taken out by name."""
    found = read_container(data)
    fields = {k: v for k, v in (dict(found.metadata) | (metadata or {})).items() if k not in without}
    numbers = {k: v for k, v in (dict(found.tensors) | (tensors or {})).items() if k not in without}
    return write_container(Container(fields, numbers))


def with_mixing_cores(data: bytes, sites: tuple[SiteSpec, ...], n_mix: int) -> bytes:
    """A basis file of these sites with random mixing cores in it."""
    rng = np.random.default_rng(0)
    cores = {
        f"{site.name}.G": raw_tensor(rng.standard_normal((n_mix + 1, site.k_out, site.k_in)).astype(np.float16))
        for site in sites
    }
    listed = json.dumps([asdict(replace(site, n_mix=n_mix)) for site in sites])
    return edited(data, metadata={"sites": listed}, tensors=cores)


def with_header(header: object, body: bytes = b"") -> bytes:
    """A container whose header is this JSON, or these bytes, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def started(store: TaskStore, basis: BasisSpec | None, base_name: str = BASE) -> TaskRegistry:
    """A registry as it is after a start of the server, its clock at 1234.9."""
    registry = TaskRegistry(store, basis, base_name, clock=lambda: 1234.9)
    registry.follow()
    return registry

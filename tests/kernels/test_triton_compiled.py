"""The Triton kernels compiled ahead of time for GPUs that this machine does not have."""

import importlib
import importlib.util
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from onebasis.kernels.triton_batched import expand_, mix_cores, plan_expansion, plan_runs

ARCHITECTURES = (80, 90, 100)
SIZES = ((3, 5, "fp32"), (16, 16, "bf16"), (24, 40, "fp16"), (64, 64, "bf16"))  # k_out, k_in, dtype of z


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Calls a function in a process where triton compiles, whatever the environment of the tests says."""
    if importlib.util.find_spec("triton") is None:
        pytest.fail("triton is not installed: pip install -e '.[dev]'")
    start = partial(start_compiler, str(tmp_path_factory.mktemp("triton")))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=120)


def start_compiler(cache_dir):
    assert "triton" not in sys.modules, "something imported triton before it was told to compile"
    os.environ.update(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache_dir)


def compile_kernel(module, name, pointers, constants, architecture):
    """(PTX, cubin) of a kernel; an argument that is neither a pointer nor a constant is an int32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"onebasis.kernels.triton_sources.{module}"), name)
    signature = dict.fromkeys(kernel.arg_names, "i32") | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    asm = triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm
    return asm["ptx"], asm["cubin"]


def assert_compiled(compiled, architecture):
    ptx, cubin = compiled
    assert f".target sm_{architecture}" in ptx
    assert cubin.startswith(b"\x7fELF")
    assert len(cubin) > 1000


def power_of_two(n, least):
    return max(least, 1 << (n - 1).bit_length())


@pytest.mark.parametrize(("k_out", "k_in", "dtype"), SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_core_product_of_single_tokens_compiles(compiler, architecture, k_out, k_in, dtype):
    pointers = {"z_ptr": f"*{dtype}", "cores_ptr": "*fp32", "rows_ptr": "*i32", "mixed_ptr": f"*{dtype}"}
    constants = {"k_out": k_out, "k_in": k_in, "out_size": power_of_two(k_out, 1), "in_size": power_of_two(k_in, 1)}
    constants |= {"z_number_stride": 1, "core_in_stride": 1}
    compiled = compiler(compile_kernel, "core_product", "mix_tokens_kernel", pointers, constants, architecture)
    assert_compiled(compiled, architecture)


@pytest.mark.parametrize(("k_out", "k_in", "dtype"), SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_core_product_of_runs_compiles(compiler, architecture, k_out, k_in, dtype):
    pointers = {"z_ptr": f"*{dtype}", "cores_ptr": "*fp32", "tiles_ptr": "*i32", "mixed_ptr": f"*{dtype}"}
    constants = {"k_out": k_out, "k_in": k_in, "out_size": power_of_two(k_out, 16), "in_size": power_of_two(k_in, 16)}
    constants |= {"z_number_stride": 1, "core_in_stride": 1, "tile_size": 32}
    compiled = compiler(compile_kernel, "core_product", "mix_runs_kernel", pointers, constants, architecture)
    assert_compiled(compiled, architecture)
    assert "tf32" not in compiled[0], "the core product is float32"


@pytest.mark.parametrize(
    ("is_diag", "dtype"), [(False, "fp16"), (False, "bf16"), (False, "fp32"), (True, "fp16"), (True, "bf16")]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_expansion_compiles(compiler, architecture, is_diag, dtype):
    pointers = {"numbers_ptr": f"*{dtype}", "sites_ptr": "*i64", "row_ptr": "*fp32"}
    constants = {"is_diag": is_diag, "block_size": 1024}
    compiled = compiler(compile_kernel, "expansion", "expand_kernel", pointers, constants, architecture)
    assert_compiled(compiled, architecture)


def test_a_compiled_kernel_refuses_tensors_of_the_cpu(compiler):
    arguments = (torch.ones(2, 3), torch.ones(4, 1, 5, 3), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="needed tensors on a GPU, found cpu"):
        compiler(mix_cores, *arguments)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_wrappers_launch_compiles(compiler, architecture):
    compiled = compiler(launch_everything, architecture)
    assert [name for name, _, _ in compiled] == ["mix_tokens_kernel", "mix_runs_kernel", "expand_kernel"]
    for _, *asm in compiled:
        assert_compiled(asm, architecture)


def launch_everything(architecture):
    """(name, PTX, cubin) of all kernels through triton's own launcher, as far as that goes without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", architecture, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: architecture,
            get_current_stream=lambda _: 0,
        )
    )
    launch = JITFunction.run
    compiled = []

    def only_compile(kernel, *args, warmup, **kwargs):
        asm = launch(kernel, *args, warmup=True, **kwargs).asm
        compiled.append((kernel.fn.__name__, asm["ptx"], asm["cubin"]))

    device = torch.device("meta")  # tensors that are nowhere: to the launcher they look like a GPU's
    z = torch.ones(40, 3 * 20, dtype=torch.bfloat16, device=device)
    cores = torch.ones(4, 3, 24, 20, device=device)
    plan = plan_expansion("core", [(3, 5), (7, 8)], [(3, 5), (7, 8)], device=device)
    with mock.patch.object(JITFunction, "run", only_compile):
        single_rows = torch.zeros(2, dtype=torch.int64, device=device)
        mix_cores(z, cores, single_rows, plan_runs([2, 40], [1], device=device))
        expand_(torch.ones(71, device=device), torch.ones(71, dtype=torch.float16, device=device), plan)
    return compiled

"""What devices exchange is counted in the compiled program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.bench.scaling import describe, exchanges, powers, size
from experiments.bench.workload import Workload, parameter_count
from jaxunet.convolution import conv3x3
from jaxunet.sharding import make_mesh, replicated, split_rows

# As XLA writes a scheduled program for a GPU, shortened.
ASYNCHRONOUS = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8,8]{1,0})->f32[8,8]{1,0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

ENTRY %main.9 (p: f32[8,8], q: bf16[4,3,3,2]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %q = bf16[4,3,3,2]{3,2,1,0} parameter(1)
  %ar-start = f32[8,8]{1,0} all-reduce-start(f32[8,8]{1,0} %p), replica_groups={{0,1}}, to_apply=%add
  %dot.1 = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %copy.1 = f32[8,8]{1,0} copy(%dot.1)
  %ar-done = f32[8,8]{1,0} all-reduce-done(f32[8,8]{1,0} %ar-start)
  %ar.2 = (f32[8,8]{1,0}, bf16[4,3,3,2]{3,2,1,0}) all-reduce(%p, %q), replica_groups={}, to_apply=%add
  ROOT %copy.2 = f32[8,8]{1,0} copy(%ar-done), metadata={op_name="jit(f)/transpose(jvp(UNet))/decoder0_conv1/mul"}
}
"""


def test_an_exchange_that_overlaps_with_other_work_differs_from_one_that_waits():
    overlapping, waiting = found = exchanges(ASYNCHRONOUS)
    assert (overlapping["kind"], overlapping["asynchronous"], overlapping["bytes"]) == ("all-reduce", True, 256)
    assert (overlapping["types"], waiting["types"]) == (["f32"], ["bf16", "f32"])
    assert overlapping["overlapped_operations"] == 2
    assert (waiting["kind"], waiting["asynchronous"], waiting["bytes"]) == ("all-reduce", False, 256 + 144)
    assert waiting["overlapped_operations"] == 0
    assert describe(found) == "1 all-reduce (f32), 1 all-reduce (bf16, f32); 1 overlap with work"
    assert describe([]) == "none"


def test_bytes_are_those_of_all_arrays_of_a_type():
    assert size("(f32[8,8]{1,0}, bf16[4,3,3,2]{3,2,1,0}, pred[5]{0}, s32[])") == 256 + 144 + 5 + 4
    assert size("f8e4m3fn[16]{0}") == 16


def test_a_mean_over_devices_is_one_exchange_of_its_result():
    mesh = make_mesh(jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(lambda x: x.mean(0), in_shardings=split, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = program.lower(jax.ShapeDtypeStruct((8, 100), jnp.float32)).compile().as_text()
    (found,) = exchanges(text)
    assert (found["kind"], found["bytes"], found["asynchronous"]) == ("all-reduce", 400, False)


@pytest.mark.parametrize(("height", "runs"), [(32, 4), (26, 13)])  # strips of 8 and of 2 rows
def test_an_exchange_in_a_loop_counts_each_time(height, runs):
    mesh = make_mesh(jax.devices()[:2])
    rows, whole = split_rows(mesh), replicated(mesh)
    program = jax.jit(
        lambda x, kernel, g: jax.vjp(lambda kernel: conv3x3((x,), kernel, jnp.zeros(16)), kernel)[1](g)[0],
        in_shardings=(rows, whole, rows),
        out_shardings=whole,
    )
    image, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, height, 8, 16), (3, 3, 16, 16)))
    found = exchanges(program.lower(image, kernel, image).compile().as_text())
    assert sum(one["runs"] * one["bytes"] for one in found) == runs * 4 * 9 * 16 * 16


def test_numbers_of_devices_double_up_to_all_of_them():
    assert powers(8) == (1, 2, 4, 8)
    assert powers(6) == (1, 2, 4, 6)


@pytest.mark.slow
def test_scaling_exchanges_the_gradients_once(here):
    words = ("--size=16", "--base_filters=2", "--num_layers=1", "--rounds=2", "--seconds=0.02")
    out, content = here("scaling", *words, "--devices=1,2", "--batch=1", "--loss=bce")
    one, two = content["results"]
    assert (one["devices"], one["batch"], one["collectives"], one["bytes_a_step"]) == (1, 1, [], 0)
    gradients = 4 * parameter_count(Workload(size=16, base_filters=2, num_layers=1))
    reduced = sum(found["bytes"] for found in two["collectives"] if found["kind"] == "all-reduce")
    assert gradients <= reduced <= gradients + 64  # and some scalars of the loss
    assert one["efficiency"] == 1
    assert "the devices are simulated" in out

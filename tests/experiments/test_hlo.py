"""Compiled programs and profiles read back: operations, bytes, exchanges, and whose time it was."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.bench.hlo import Module, elements, size
from experiments.bench.profiles import Event, divide, read_events
from jaxunet.convolution import conv3x3
from jaxunet.sharding import make_mesh, replicated, split_rows

LAYOUT = ("NHWC", "HWIO", "NHWC")

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

CUDNN = """HloModule jit_f

ENTRY %main (x: f32[2,16,16,8], g: f32[2,16,16,4]) -> f32[4,3,3,8] {
  %x = f32[2,16,16,8]{3,2,1,0} parameter(0)
  %g = f32[2,16,16,4]{3,2,1,0} parameter(1)
  %conv = (f32[4,3,3,8]{3,2,1,0}, u8[64]{0}) custom-call(%x, %g), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %result = f32[4,3,3,8]{3,2,1,0} get-tuple-element(%conv), index=0
}
"""


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (convolve, [(2, 12, 10, 3), (3, 3, 3, 5)]),
        (lambda a, b: a @ b, [(64, 96), (96, 32)]),
        (jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), argnums=1), [(2, 12, 10, 3), (3, 3, 3, 5)]),
    ],
)
def test_operations_are_as_many_as_xla_counts(function, shapes):
    program = compiled(function, *shapes)
    module = Module(program.as_text())
    entry = next(body for body in reversed(module.computations.values()))
    counted = sum(module.flops(instruction) for instruction in entry.values())
    assert counted == pytest.approx(program.cost_analysis()["flops"], rel=0.05)  # which also counts additions


def test_a_convolution_of_a_gpu_counts_whichever_way_it_goes():
    module = Module(CUDNN)
    assert module.flops(module["conv"]) == pytest.approx(2 * 2 * 16 * 16 * 9 * 8 * 4)


def test_bytes_are_those_of_operands_and_result():
    module = Module(ASYNCHRONOUS)
    assert module.bytes_moved(module["dot.1"]) == 2 * 8 * 8 * 4  # the same operand twice is read once
    assert size("(f32[8,8]{1,0}, bf16[4,3,3,2]{3,2,1,0}, pred[5]{0}, s32[])") == 256 + 144 + 5 + 4
    assert size("f8e4m3fn[16]{0}") == 16
    assert elements("bf16[4,3,3,2]{3,2,1,0}") == [4, 3, 3, 2]
    assert elements("f32[]") == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x[8:12],
        lambda x, y: x[8:12] + y[:4] * x[:4],
        lambda x, y: x[:4] @ y,
        lambda x, y: jax.lax.dynamic_slice(x, (y[0, 0].astype(int), 0), (4, 64)) * 2,
        lambda x, y: x[:4] + x.sum(0),  # which reads all of it all the same
        lambda x, y: jax.lax.dynamic_update_slice(x, y[:4] * 2, (8, 0)),
        lambda x, y: jax.lax.dynamic_update_slice(x, x[:4] * 2, (y[0, 0].astype(int), 0)),
    ],
)
def test_of_what_is_used_in_part_the_part_is_moved_as_xla_counts(function):
    program = compiled(function, (64, 64), (64, 64))
    module = Module(program.as_text())
    assert module.total_bytes() == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.02)


def test_what_a_loop_runs_is_scheduled_and_what_a_fusion_holds_is_not():
    def function(x, y):
        return jax.lax.fori_loop(0, 5, lambda step, x: jnp.sin(x @ y) + 1, x)

    program = compiled(function, (16, 16), (16, 16))
    module = Module(program.as_text())
    runs = {operation.opcode: runs for operation, runs in module.scheduled() if "dot" in operation.label}
    assert list(runs.values()) == [5]
    assert module.total_flops() == 5 * 2 * 16**3
    assert (
        module.total_bytes() >= 5 * 3 * 4 * 16**2
    )  # three matrices a product; XLA's own count has one turn of the loop
    inside = {instruction.opcode for instruction, _ in module.scheduled()}
    assert "while" not in inside
    assert "sine" not in inside or "fusion" not in inside


def test_an_instruction_names_its_layer():
    module = Module(ASYNCHRONOUS)
    assert module.name == "jit_train_step"
    assert module["copy.2"].label == "decoder0_conv1 gradient: mul"
    assert module["dot.1"].label == "dot"


def test_an_exchange_that_runs_beside_other_work_is_told_from_one_that_waits():
    beside, waiting = Module(ASYNCHRONOUS).collectives()
    assert (beside["kind"], beside["asynchronous"], beside["bytes"]) == ("all-reduce", True, 256)
    assert (beside["types"], waiting["types"]) == (["f32"], ["bf16", "f32"])
    assert (beside["overlapped_operations"], beside["overlapped_flops"]) == (2, 2 * 8 * 8 * 8)
    assert (waiting["kind"], waiting["asynchronous"], waiting["bytes"]) == ("all-reduce", False, 256 + 144)
    assert waiting["overlapped_operations"] == 0


def test_a_mean_over_devices_is_one_exchange_of_its_result():
    mesh = make_mesh(jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(lambda x: x.mean(0), in_shardings=split, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = program.lower(jax.ShapeDtypeStruct((8, 100), jnp.float32)).compile().as_text()
    (found,) = Module(text).collectives()
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
    found = Module(program.lower(image, kernel, image).compile().as_text()).collectives()
    assert sum(one["runs"] * one["bytes"] for one in found) == runs * 4 * 9 * 16 * 16


def test_a_moment_belongs_to_all_that_run_and_to_a_loop_only_where_nothing_in_it_does():
    events = [Event("a", 0, 10), Event("b", 5, 10), Event("a", 20, 21)]
    assert divide(events) == {"a": 5 + 2.5 + 1, "b": 2.5}
    events = [Event("loop", 0, 10), Event("body", 2, 5), Event("other", 4, 6)]
    assert divide(events, ["loop"]) == {"loop": 2 + 4, "body": 2 + 0.5, "other": 0.5 + 1}


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=list(stats.items()))


def plane(**lines):
    return SimpleNamespace(lines=[SimpleNamespace(name=name, events=events) for name, events in lines.items()])


def test_an_instruction_of_a_cpu_lasts_until_its_threads_are_done():
    ours = {"hlo_op": "conv.1", "hlo_module": "jit_step"}
    one = [event("conv.1", 0, 3, **ours), event("conv.1", 100, 3, **ours), event("other", 0, 9)]
    two = [event("end: conv.1", 108, 0), event("end: conv.1", 7, 0), event("x", 0, 5, hlo_op="x", hlo_module="jit_y")]
    assert read_events([plane(thread=one, another=two)], "jit_step") == [
        Event("conv.1", 0, 7),
        Event("conv.1", 100, 108),
    ]


def test_a_kernel_of_a_gpu_is_not_counted_again_on_xla_s_own_line():
    kernel = event("sm90_xmma_fprop", 5, 20, hlo_op="conv.1", hlo_module="jit_step")
    copy = event("conv.1", 5, 20, hlo_op="conv.1", hlo_module="jit_step(77)")
    found = read_events([plane(**{"Stream #13(Compute)": [kernel], "XLA Ops": [copy]})], "jit_step")
    assert found == [Event("conv.1", 5, 25)]
    np.testing.assert_equal(divide(found)["conv.1"], 20)


def test_what_a_loop_repeats_is_not_in_the_entry():
    program = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: jnp.sin(x) + 1, x))
    module = Module(program.lower(jnp.ones((8, 8))).compile().as_text())
    everywhere, once = ({one.opcode for one in some} for some in (module, module.entry.values()))
    assert {"sine", "parameter"} <= everywhere
    assert "parameter" in once
    assert "sine" not in once

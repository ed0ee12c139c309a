import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from regseg_jax.benchmark import hlo
from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg

# Written by hand as the GPU and TPU compilers write it, which are not needed here.
GPU_TEXT = """HloModule jit_train_step, is_scheduled=true

%fused_dot (p0: bf16[4,8], p1: bf16[8,16]) -> f32[4,16] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %p1 = bf16[8,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,16]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%wrapped (q: f32[100]) -> f32[100] {
  %q = f32[100]{0} parameter(0)
  ROOT %neg = f32[100]{0} negate(%q), metadata={op_name="jit(train_step)/neg"}
}

ENTRY %main.9 (x: bf16[1,8,8,32], k: bf16[64,3,3,8], d: bf16[1,4,4,64]) -> (f32[4,16], u8[0]) {
  %x = bf16[1,8,8,32]{3,2,1,0} parameter(0)
  %k = bf16[64,3,3,8]{3,2,1,0} parameter(1), metadata={op_name="state.params['decoder']['k']"}
  %d = bf16[1,4,4,64]{3,2,1,0} parameter(2)
  %conv.1 = (bf16[1,4,4,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, feature_group_count=4, custom_call_target="__cudnn$convForward", metadata={op_name="jit(train_step)/jvp(RegSeg)/backbone/stage8_0/conv2/conv_general_dilated"}, backend_config={"conv_result_scale":1}
  %conv.2 = (bf16[1,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%d, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, feature_group_count=4, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(train_step)/transpose(jvp(RegSeg))/stem/conv_general_dilated"}
  %conv.3 = (bf16[64,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %d), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, feature_group_count=4, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(train_step)/transpose(jvp(RegSeg))/stem/conv_general_dilated"}
  %a = bf16[4,8]{1,0} constant({...})
  %b = bf16[8,16]{1,0} constant({...})
  %fusion = f32[4,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot, metadata={op_name="jit(train_step)/augmentation/vmap()/dot_general"}
  %gemm = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(train_step)/jvp()/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %start = (f32[25]{0}, f32[100]{0}) all-gather-start(%w), dimensions={0}
  %w = f32[25]{0} constant({...})
  %done = f32[100]{0} all-gather-done(%start)
  %sum = (f32[10]{0}, f32[20]{0}) all-reduce(%w, %w), to_apply=%wrapped
  %call.1 = f32[100]{0} call(%done), to_apply=%wrapped
  %copy.1 = f32[100]{0} copy(%call.1)
  ROOT %out = (f32[4,16]{1,0}, u8[0]{0}) tuple(%fusion, %call.1)
}
"""  # noqa: E501
TPU_TEXT = """HloModule jit_infer

ENTRY %main.2 (x: f32[8,128]) -> bf16[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %one = bf16[8,128]{1,0:T(8,128)(2,1)} convert(%x), metadata={op_name="jit(infer)/convert"}, backend_config={"estimated_cycles":"120"}
  %copying = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%one)
  %copied = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copying)
  %slicing = ((bf16[8,128]{1,0:T(8,128)(2,1)}), bf16[4,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) slice-start(%one), slice={[0:4], [0:128]}
  %sliced = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%slicing)
  ROOT %two = bf16[8,128]{1,0:T(8,128)(2,1)} copy(%copied), backend_config={"estimated_cycles":"9223372036854775807"}
}
"""  # noqa: E501


def compile_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_gpu_program_by_part():
    program = hlo.count_program(GPU_TEXT)
    convolution = 2 * 1 * 4 * 4 * 64 * 9 * 8
    assert list(program.parts) == [
        *("stem", "stage8", "upsampling, loss", "augmentation", "optimizer", "unnamed")
    ]
    assert program.parts["stage8"].flops == convolution
    assert program.parts["stage8"].bytes == 2 * (4 * 4 * 64 + 8 * 8 * 32 + 64 * 9 * 8)
    assert program.parts["stem"].kernels == 2
    assert program.parts["stem"].flops == 2 * convolution
    assert program.parts["augmentation"].flops == 2 * 4 * 8 * 16
    assert program.parts["upsampling, loss"].flops == 2 * 4 * 8 * 16
    assert program.parts["optimizer"].kernels == 1  # inside the call
    assert program.parts["unnamed"] == hlo.Cost(kernels=1, bytes=800)
    assert program.total.kernels == 7
    gathered, summed = program.collectives
    assert gathered == ("all-gather", 400, 1, hlo.Cost())  # a constant is no kernel
    assert summed == ("all-reduce", 120, 1, hlo.Cost())


def test_kernels_beside_a_collective():
    done = "  %done = f32[100]{0} all-gather-done(%start)\n"
    after = "  %copy.0 = f32[100]{0} copy(%w)\n"
    gathered, _ = hlo.count_program(GPU_TEXT.replace(done, after + done)).collectives
    assert gathered.beside == hlo.Cost(kernels=1, bytes=500)


def test_a_tpu_program_has_cycles():
    program = hlo.count_program(TPU_TEXT)
    assert program.total.cycles == 120  # no estimate of the copy
    assert program.parts["input, output"].bytes == 6 * 8 * 128
    assert program.parts["unnamed"].kernels == 3
    copied, sliced = 2 * 8 * 128, 2 * 4 * 128
    assert program.parts["unnamed"].bytes == 2 * (copied + sliced + copied)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_operations_of_a_convolution_and_of_its_gradients(stride, groups):
    x, kernel = jnp.zeros((2, 16, 16, 32)), jnp.zeros((3, 3, 32 // groups, 64))
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    y = jax.eval_shape(conv, x, kernel)
    flops = 2 * y.size * 9 * 32 // groups
    assert hlo.count_program(compile_text(conv, x, kernel)).total.flops == flops

    def compute_gradients(x, kernel, dy):
        return jax.vjp(conv, x, kernel)[1](dy)

    text = compile_text(compute_gradients, x, kernel, jnp.zeros(y.shape))
    assert hlo.count_program(text).total.flops == pytest.approx(2 * flops, rel=0.02)


def test_a_loop_counts_as_often_as_it_runs():
    def repeat(x, times):
        return jax.lax.fori_loop(0, times, lambda i, y: jnp.sin(y @ x), x)

    for times in (1, 7):
        text = compile_text(functools.partial(repeat, times=times), jnp.zeros((8, 8)))
        assert hlo.count_program(text).total.flops == times * 2 * 8**3


def test_of_an_array_that_is_only_sliced_the_slices_count():
    def update(params, gradients):  # as the optimizer, from one vector of all gradients
        pieces = jnp.split(gradients, len(params))
        return [jnp.tanh(p) - 0.1 * piece for p, piece in zip(params, pieces, strict=True)]

    text = compile_text(update, [jnp.zeros(1000)] * 10, jnp.zeros(10_000))
    program = hlo.count_program(text)
    assert program.total.kernels >= 10
    assert program.total.bytes == pytest.approx(4 * 3 * 10_000, rel=0.01)

    text = compile_text(lambda x: x + x[7], jnp.zeros(10_000))
    assert hlo.count_program(text).total.bytes >= 4 * 2 * 10_000


def test_what_devices_send():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def send(x):
        return jax.lax.psum(x, "data"), jax.lax.all_gather(x, "data")

    spec = PartitionSpec("data")
    mapped = jax.shard_map(
        send, mesh=mesh, in_specs=spec, out_specs=(PartitionSpec(), spec), check_vma=False
    )
    program = hlo.count_program(compile_text(mapped, jnp.zeros((2, 50))))
    assert {c[:3] for c in program.collectives} == {("all-reduce", 200, 1), ("all-gather", 400, 1)}


def test_every_part_of_a_real_step_is_found():
    stages = (("stage4", 16), ("stage8", 32), ("stage16", 32))
    stages = tuple((name, (variants.Block(width, stride=2),)) for name, width in stages)
    variant = variants.Variant("tiny_decoder12", variants.Backbone(stages), "decoder12")
    model, images = RegSeg(variant, num_classes=5), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def train_step(variables, images):
        @jax.named_scope("augmentation")
        def augment(images):
            return jnp.sort(images, axis=1)

        def compute_loss(params):
            out, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.square(out).mean()

        images = augment(images)
        grads = jax.grad(compute_loss)(variables["params"])
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)

    program = hlo.count_program(compile_text(train_step, variables, images))
    network = ["stem", "stage4", "stage8", "stage16", "decoder"]
    assert {*network, "upsampling, loss", "augmentation", "optimizer"} <= set(program.parts)
    assert all(program.parts[name].flops > 0 for name in network)
    assert program.parts["optimizer"].flops == 0


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.count_program("module @jit_f {\n}\n")

"""Loads a pack into vLLM's own model class on the CPU and compares its parameters; run by test_vllm.py in a process of its own.

The package of vLLM that is built for GPUs chooses no platform on a machine without one, so the CPU's is set here. Nothing is computed.
"""

import sys

import torch
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()

from vllm.config import DeviceConfig, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.model_executor.model_loader import get_model_loader  # noqa: E402
from vllm.plugins import load_general_plugins  # noqa: E402
from vllm.utils.torch_utils import set_default_torch_dtype  # noqa: E402

import ucpack  # noqa: E402

folder, rendezvous = sys.argv[1:]
load_general_plugins()
model_config = ModelConfig(model=folder, quantization="ucpack", dtype="bfloat16", enforce_eager=True)
config = VllmConfig(
    model_config=model_config,
    load_config=LoadConfig(load_format="ucpack"),
    device_config=DeviceConfig(device="cpu"),
)
assert config.quant_config.get_name() == "ucpack"
with set_current_vllm_config(config):
    init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
    initialize_model_parallel(1, 1)
    loader = get_model_loader(config.load_config)
    loader.download_model(model_config)
    with set_default_torch_dtype(torch.bfloat16), torch.device("cpu"):
        model = loader.create_model(config, model_config)
    # This also makes sure that no parameter was left out.
    model_config.quantization = None
    loader.load_weights(model, model_config)

parameters = dict(model.named_parameters())
with ucpack.Pack(folder) as pack:
    for layer in pack.manifest.layers:
        parts = {
            "self_attn.qkv_proj.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"],
            "self_attn.o_proj.weight": ["self_attn.o_proj.weight"],
            "mlp.gate_up_proj.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            "mlp.down_proj.weight": ["mlp.down_proj.weight"],
            "input_layernorm.weight": ["input_layernorm.weight"],
        }
        for name, names in parts.items():
            expected = torch.cat([pack.torch(layer.prefix + part) for part in names])
            assert torch.equal(parameters[layer.prefix + name], expected), name
    assert torch.equal(parameters["model.embed_tokens.weight"], pack.torch("model.embed_tokens.weight"))
print(f"{type(model).__name__}: {len(parameters)} parameters")

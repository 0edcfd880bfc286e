"""The vLLM plugin against vLLM's own classes, on the CPU. Serving itself needs a device that vLLM supports."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
vllm = pytest.importorskip("vllm", reason="vllm is not installed")

import ucpack  # noqa: E402
import ucpack.vllm  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The plugin as vLLM loads it: through its entry point."""
    entries = importlib.metadata.entry_points(group="vllm.general_plugins")
    (entry,) = [entry for entry in entries if entry.name == "ucpack"]
    register = entry.load()
    register()
    register()


def loader(**extra):
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    return get_model_loader(LoadConfig(load_format="ucpack", model_loader_extra_config=extra))


class ModelConfig:
    """What the loader reads of vLLM's class of this name, which cannot be made without a device."""

    def __init__(self, model):
        self.model = str(model)
        self.quantization = "ucpack"
        self.revision = None
        self.multimodal_config = None


def test_the_quantization_config_is_found_by_name_and_reads_the_manifest(tiny):
    import json

    from vllm.model_executor.layers.quantization import get_quantization_config

    config_class = get_quantization_config("ucpack")
    assert config_class.get_config_filenames() == ["manifest.json"]
    config = config_class.from_config(json.loads((tiny / "manifest.json").read_bytes()))
    assert config.get_name() == "ucpack" and torch.bfloat16 in config.get_supported_act_dtypes()
    with ucpack.Pack(tiny) as pack:
        assert config.bits_per_weight == pack.manifest.totals.bits_per_weight_linears
    with pytest.raises(ValueError, match="expected the manifest of a pack"):
        config_class.from_config({"name": "an app"})


def test_linears_are_computed_without_quantization(tiny):
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization import get_quantization_config

    config = get_quantization_config("ucpack")("5.0")
    linear = LinearBase.__new__(LinearBase)
    torch.nn.Module.__init__(linear)
    assert isinstance(config.get_quant_method(linear, "model.layers.0"), UnquantizedLinearMethod)
    assert config.get_quant_method(torch.nn.Embedding(2, 2), "model.embed_tokens") is None


@pytest.mark.parametrize("extra", [{}, {"num_threads": 1}])
def test_the_loader_yields_every_tensor_of_the_checkpoint(tiny, extra):
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    pack_loader = loader(**extra)
    assert isinstance(pack_loader, BaseModelLoader)
    pack_loader.download_model(ModelConfig(tiny))
    weights = dict(pack_loader.get_all_weights(ModelConfig(tiny), torch.nn.Module()))
    with ucpack.Pack(tiny) as pack:
        expected = pack.state_dict("pt")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor) and weights[name].dtype == tensor.dtype, name


def test_the_loader_fills_the_model_class_of_vllm(tiny, tmp_path):
    command = [sys.executable, Path(__file__).with_name("load_with_vllm.py"), tiny, tmp_path / "rendezvous"]
    loaded = subprocess.run(command, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr[-4000:]
    assert "LlamaForCausalLM: " in loaded.stdout


def test_a_model_that_is_no_local_pack_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        loader().download_model(ModelConfig("owner/name"))
    with pytest.raises(FileNotFoundError, match="not a pack"):
        loader().download_model(ModelConfig(tmp_path))
    with pytest.raises(ValueError, match="extra config"):
        loader(colour="red")

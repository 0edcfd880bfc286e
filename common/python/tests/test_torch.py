"""Tensors of torch and models of transformers."""

import shutil
import subprocess
import sys

import pytest
from conftest import Q_PROJ, TINY

torch = pytest.importorskip("torch", reason="torch is not installed")

import ucpack  # noqa: E402


def test_torch_tensors_are_bfloat16_on_the_memory_that_was_decoded(tiny):
    with ucpack.Pack(tiny) as pack:
        tensor, array = pack.torch(Q_PROJ), pack[Q_PROJ]
        assert tensor.dtype == torch.bfloat16 and tuple(tensor.shape) == array.shape
        assert tensor.view(torch.uint16).numpy().tobytes() == array.tobytes()
        wide = pack.tensor(Q_PROJ, torch.float32, framework="pt")
        assert wide.dtype == torch.float32 and torch.equal(wide.bfloat16(), tensor)
        with pytest.raises(ValueError, match="expected bfloat16 or float32"):
            pack.tensor(Q_PROJ, torch.float16, framework="pt")
        assert pack.tensor(Q_PROJ, torch.float32).dtype == "float32"
        tensor.zero_()
        assert pack.torch(Q_PROJ).abs().sum() > 0
        tensors = pack.state_dict()
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())


transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")


def loaded_by_hand(model_folder, folder):
    """The source's model with the pack's tensors, loaded through safetensors files and plain transformers."""
    import safetensors.torch

    with ucpack.Pack(folder) as pack:
        tensors = {name: tensor.contiguous() for name, tensor in pack.state_dict().items()}
    model_folder.mkdir()
    shutil.copy(folder / "config.json", model_folder)
    safetensors.torch.save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(model_folder)


def logits(model):
    ids = torch.arange(1, 33).reshape(2, 16) % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_from_pretrained_gives_the_logits_of_a_model_that_was_loaded_by_hand(tiny, tmp_path):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    expected = loaded_by_hand(tmp_path / "model", tiny)
    assert model.dtype == expected.dtype
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert torch.equal(logits(model), logits(expected))
    source = transformers.AutoModelForCausalLM.from_pretrained(TINY)
    assert not torch.equal(logits(model), logits(source))
    # It is an ordinary model.
    assert not getattr(model, "is_quantized", False) and not hasattr(model.config, "quantization_config")
    assert model.name_or_path == str(tiny)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model))


@pytest.mark.parametrize("name", ["gpt2", "granitemoe", "qwen3_moe"])
def test_families_that_arrange_their_tensors_differently_load_too(family, name, tmp_path):
    source, folder = family(name)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert torch.equal(logits(model), logits(loaded_by_hand(tmp_path / "model", folder)))
    original = transformers.AutoModelForCausalLM.from_pretrained(source)
    expected = logits(original).float()
    error = (logits(model).float() - expected).square().mean() / expected.square().mean()
    assert error < 0.1, error


def test_other_dtypes_are_those_of_an_ordinary_load(tiny, tmp_path):
    expected = loaded_by_hand(tmp_path / "model", tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert model.dtype == torch.float32
    wide = expected.float()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), wide.state_dict().values()))


def test_generation_from_a_pack(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(generated[0], skip_special_tokens=True)
    assert text.startswith("Once upon a time") and len(text) > 30, text


def test_the_wrapper_needs_no_extension_of_transformers(tiny):
    code = """
import os, sys
os.environ["UCPACK_NO_HOOK"] = "1"
import transformers, ucpack, ucpack.transformers
assert not hasattr(transformers.PreTrainedModel.from_pretrained, "_ucpack_original")
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
except OSError as error:
    assert "safetensors" in str(error)
else:
    raise AssertionError("transformers itself reads no packs")
model = ucpack.transformers.from_pretrained(sys.argv[1])
print(type(model).__name__, model.dtype)
"""
    shown = subprocess.run([sys.executable, "-c", code, tiny], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "ForCausalLM torch." in shown.stdout


def test_options_are_checked_before_anything_is_loaded(tiny, copy):
    from ucpack.transformers import PackConfig

    load = transformers.AutoModelForCausalLM.from_pretrained
    with ucpack.Pack(tiny) as pack:
        fingerprint = pack.fingerprint
    assert load(tiny, quantization_config=PackConfig(fingerprint=fingerprint, verify=True, threads=1))
    with pytest.raises(ValueError, match="found fingerprint"):
        load(tiny, quantization_config=PackConfig(fingerprint="0" * 64))
    with pytest.raises(TypeError, match="PackConfig"):
        load(tiny, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ucpack.VerificationError, match="tokenizer.json"):
        load(copy, quantization_config=PackConfig(verify=True))
    (copy / "layer_001.uc").unlink()
    with pytest.raises(FileNotFoundError, match="layer_001.uc"):
        load(copy)


def test_the_quantizer_and_its_config_are_registered(tiny):
    from transformers.quantizers import auto

    from ucpack.transformers import PackConfig, PackQuantizer, install

    install()
    install()
    config = auto.AutoQuantizationConfig.from_dict({"quant_method": "ucpack", "verify": True})
    assert isinstance(config, PackConfig) and config.verify
    assert isinstance(auto.AutoHfQuantizer.from_config(config), PackQuantizer)
    original = transformers.PreTrainedModel.from_pretrained.__func__._ucpack_original
    assert not hasattr(original, "_ucpack_original")

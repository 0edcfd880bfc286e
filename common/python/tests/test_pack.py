"""`ucpack.Pack`: reading, errors, verification, measuring."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from conftest import Q_PROJ, TINY, ucpack_command

import ucpack


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def read_safetensors(model):
    """Name, dtype, shape of every tensor of a model, and its bytes."""
    tensors = {}
    for file in model.glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[8 + length + start : 8 + length + end])
    return tensors


def test_every_tensor_has_the_digest_shape_and_type_of_the_manifest(tiny):
    raw = json.loads((tiny / "manifest.json").read_bytes())
    expected = {}
    for layer in raw["layers"]:
        for linear in layer["linears"]:
            expected[layer["prefix"] + linear["name"]] = (linear["shape"], "BF16", linear["reconstructed_sha256"])
        for exact in layer["extras"]:
            expected[layer["prefix"] + exact["name"]] = (exact["shape"], exact["dtype"], exact["sha256"])
    for exact in raw["scaffold"]["tensors"]:
        expected[exact["name"]] = (exact["shape"], exact["dtype"], exact["sha256"])
    with ucpack.Pack(tiny) as pack:
        assert list(pack) == list(pack.keys()) == list(expected)
        assert len(pack) == len(expected) == 38
        for name, (shape, dtype, digest) in expected.items():
            array = pack[name]
            assert array.shape == tuple(shape) and sha256(array) == digest, name
            assert array.dtype == ml_dtypes.bfloat16 or dtype != "BF16"
            assert array.flags.writeable and not array.flags.owndata
            assert pack.info(name).sha256 == digest and pack.info(name).shape == tuple(shape)


def test_the_manifest_is_typed_and_equals_the_file(tiny):
    raw = json.loads((tiny / "manifest.json").read_bytes())
    with ucpack.Pack(tiny) as pack:
        manifest = pack.manifest
        digest = hashlib.sha256((tiny / "manifest.json").read_bytes()).hexdigest()
        assert pack.fingerprint == digest

    def plain(value):
        """The JSON of the dataclasses under the names of the file."""
        if dataclasses.is_dataclass(value):
            names = {"exact": "extras", "non_layer": "scaffold"}
            fields = {names.get(f.name, f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            optional = ("hub", "request", "arithmetic")
            return {key: field for key, field in fields.items() if field is not None or key not in optional}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    assert plain(manifest) == raw
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.pack_version = 8
    bits = sum(8 * layer.size for layer in manifest.layers)
    assert bits == manifest.totals.linear_bits
    assert 4.9 < manifest.layers[0].bits_per_weight < 7 and manifest.layers[0].linears[0].bits_per_weight > 1


def test_tensors_have_the_same_bytes_for_any_number_of_threads(tiny):
    with ucpack.Pack(tiny) as pack:
        one = pack.state_dict("np", threads=1)
        with ThreadPoolExecutor(8) as pool:
            many = dict(zip(pack, pool.map(pack.numpy, pack)))
        streamed = dict(pack.stream(threads=3))
    assert list(one) == list(streamed)
    for name, array in one.items():
        assert array.tobytes() == many[name].tobytes() == streamed[name].tobytes(), name


def test_arrays_outlive_the_pack_and_a_closed_pack_says_so(tiny):
    pack = ucpack.Pack(tiny)
    array = pack[Q_PROJ]
    digest = sha256(array)
    pack.close()
    pack.close()
    assert pack.closed and sha256(array) == digest and Q_PROJ in pack
    assert "closed" in repr(pack) and pack.manifest.pack_version == 7
    uses = [
        lambda: pack[Q_PROJ],
        lambda: pack.state_dict("np"),
        lambda: next(pack.stream()),
        lambda: pack.verify(),
        lambda: pack.statistics(Q_PROJ),
        lambda: pack.diff(pack),
        lambda: pack.__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()


def test_names_that_do_not_exist_are_key_errors_with_near_names(tiny):
    with ucpack.Pack(tiny) as pack:
        with pytest.raises(KeyError, match="near names: .*model.layers.0.self_attn.q_proj.weight"):
            pack["model.layers.0.self_attn.q_prj.weight"]
        with pytest.raises(KeyError, match="zzz"):
            pack["zzz"]
        with pytest.raises(KeyError):
            pack.state_dict("np", names=["zzz"])
        with pytest.raises(KeyError):
            pack.statistics("zzz")
        with pytest.raises(KeyError):
            pack.info("zzz")
        assert pack.get("zzz") is None and "zzz" not in pack and 3 not in pack


def test_a_wrong_dtype_is_refused_and_a_wider_one_is_exact(tiny):
    with ucpack.Pack(tiny) as pack:
        stored = pack[Q_PROJ]
        for dtype in (np.float32, "float64", np.dtype(np.float32), "float32"):
            wide = pack.tensor(Q_PROJ, dtype)
            assert wide.dtype == np.dtype(dtype) and (wide.astype(ml_dtypes.bfloat16) == stored).all()
        assert pack.tensor(Q_PROJ).dtype == pack.tensor(Q_PROJ, "bfloat16").dtype == ml_dtypes.bfloat16
        for dtype in (np.float16, "int8", ml_dtypes.float8_e4m3fn, np.uint16):
            with pytest.raises(ValueError, match="is bfloat16: found dtype .*, expected bfloat16 or float32"):
                pack.tensor(Q_PROJ, dtype)
        for dtype in (3, "no such type", [1]):
            with pytest.raises(TypeError, match="expected an element type"):
                pack.tensor(Q_PROJ, dtype)
        with pytest.raises(ValueError, match="expected 'np' or 'pt'"):
            pack.tensor(Q_PROJ, framework="tf")
        with pytest.raises(ValueError, match="threads"):
            pack.state_dict("np", threads=0)


def test_paths_that_are_no_pack_say_what_they_are(tiny, tmp_path):
    with pytest.raises(FileNotFoundError):
        ucpack.Pack(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="not a pack: it holds no manifest.json"):
        ucpack.Pack(tmp_path)
    with pytest.raises(FileNotFoundError, match="run/pack is one"):
        ucpack.Pack(tiny.parent)
    with pytest.raises(NotADirectoryError, match="expected the folder of a pack"):
        ucpack.Pack(tiny / "manifest.json")


def test_damage_is_found_when_a_tensor_is_read_and_never_returned(copy):
    data = bytearray((copy / "layer_000.uc").read_bytes())
    data[-1] ^= 1
    (copy / "layer_000.uc").write_bytes(data)
    with ucpack.Pack(copy) as pack:
        layer = pack.manifest.layers[0]
        with pytest.raises(ucpack.DamagedPackError, match="layer_000.uc"):
            pack[layer.prefix + layer.linears[-1].name]
        # The other tensors of the file are intact.
        assert sha256(pack[layer.prefix + layer.linears[0].name]) == layer.linears[0].reconstructed_sha256
        report = pack.verify()
        assert report.verdict == "FAIL" and not report.passed
        assert any(finding.file == "layer_000.uc" and finding.tensor for finding in report.findings)
        with pytest.raises(ucpack.VerificationError, match="layer_000.uc") as raised:
            report.raise_for_findings()
        assert raised.value.report is report and isinstance(raised.value, ucpack.DamagedPackError)
    (copy / "layer_000.uc").write_bytes(data[:-40])
    with ucpack.Pack(copy) as pack, pytest.raises(ucpack.DamagedPackError, match="file length"):
        pack[layer.prefix + layer.linears[0].name]


def test_a_damaged_or_newer_manifest_is_refused(copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"pack_version": 7', '"pack_version": 99'))
    with pytest.raises(ucpack.PackError, match="version 99; this program reads version 7") as raised:
        ucpack.Pack(copy)
    assert not isinstance(raised.value, ucpack.DamagedPackError)
    (copy / "manifest.json").write_text(text.replace('"name"', '"nome"', 1))
    with pytest.raises(ucpack.DamagedPackError):
        ucpack.Pack(copy)
    assert ucpack.verify(copy).verdict == "FAIL"


def test_layers_that_were_deleted_after_their_upload_name_the_repository(copy):
    (copy / "layer_001.uc").unlink()
    name = "model.layers.1.self_attn.q_proj.weight"
    with ucpack.Pack(copy) as pack:
        with pytest.raises(FileNotFoundError, match="layer_001.uc"):
            pack[name]
        (copy / "remote.json").write_text('{"repository": "me/my-pack"}')
        with pytest.raises(FileNotFoundError, match="according to remote.json, me/my-pack holds it"):
            pack[name]
        with pytest.raises(FileNotFoundError, match="me/my-pack"):
            pack.state_dict("np")
        assert pack[Q_PROJ].shape == (128, 128)


def test_verification_passes_with_progress_and_compares_the_fingerprint(tiny):
    seen = []
    with ucpack.Pack(tiny) as pack:
        report = pack.verify(progress=lambda done, total: seen.append((done, total)), threads=2)
        assert report.verdict == "PASS" and report.findings == () and report.passed
        report.raise_for_findings()
        assert report.fingerprint == pack.fingerprint and report.tensors_checked == len(pack)
        assert report.spot_check.matches
        total = pack.manifest.totals.total_bytes
        assert seen and seen[-1] == (total, total) and seen == sorted(seen)
        assert pack.verify(expected_fingerprint=pack.fingerprint.upper()).passed
        assert not pack.verify(expected_fingerprint="0" * 64).passed
        with pytest.raises(ValueError, match="64 lower-case"):
            pack.verify(expected_fingerprint="abc")
        with pytest.raises(ValueError, match="threads"):
            pack.verify(threads=0)


def test_an_exception_of_the_progress_callback_ends_the_verification(tiny):
    def progress(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ucpack.verify(tiny, progress=progress)


def test_ctrl_c_interrupts_a_verification(tiny):
    pressed = threading.Event()

    def progress(done, total):
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ucpack.verify(tiny, progress=progress, threads=1)
    assert pressed.is_set() and time.monotonic() - began < 30
    assert ucpack.verify(tiny).passed


def test_statistics_of_a_linear_agree_with_its_array(tiny):
    with ucpack.Pack(tiny) as pack:
        measured, array = pack.statistics(Q_PROJ), pack.tensor(Q_PROJ, "float64")
        assert measured["shape"] == list(array.shape) and measured["sha256"] == pack.info(Q_PROJ).sha256
        assert measured["values"]["max"] == array.max() and measured["values"]["zeros"] == (array == 0).sum()
        coded = measured["storage"]["coded"]
        assert coded["bits"] == pack.info(Q_PROJ).bits and sum(coded["levels"]["counts"]) == array.size
        norm = pack.statistics("model.norm.weight")
        assert norm["storage"] == {"exact": pack.info("model.norm.weight").dtype}


def test_two_packs_are_compared_tensor_by_tensor(tiny, tiny_4):
    with ucpack.Pack(tiny) as a, ucpack.Pack(tiny_4) as b:
        compared = a.diff(b)
        assert not compared["identical"] and compared["summary"]["differing"] == 28
        by_name = {tensor["name"]: tensor for tensor in compared["tensors"]}
        x, y = a.tensor(Q_PROJ, "float64"), b.tensor(Q_PROJ, "float64")
        expected = ((x - y) ** 2).sum() / (x**2).sum()
        assert by_name[Q_PROJ]["error"]["relative_squared_error"] == pytest.approx(expected)
        assert by_name["model.norm.weight"]["outcome"] == "identical"
        assert any("bpw" in field["field"] for field in compared["provenance"])
        assert a.diff(a)["identical"] and len(a.diff(b, layer=0)["tensors"]) < len(compared["tensors"])
        with pytest.raises(KeyError):
            a.diff(b, layer=99)
    assert ucpack.diff(tiny, tiny_4, decode=False)["summary"]["differing"] == 28


@pytest.mark.parametrize("name", ["gpt2", "granitemoe", "qwen3_moe"])
def test_the_source_layout_has_the_names_and_shapes_of_the_checkpoint(family, name):
    model, folder = family(name)
    source = read_safetensors(model)
    with ucpack.Pack(folder) as pack:
        tensors = pack.state_dict("np")
        assert tensors.keys() == source.keys()
        rounded = 0
        for key, (_, shape, data) in source.items():
            assert tensors[key].shape == shape, key
            if key in pack and pack.info(key).kind == "exact":
                assert tensors[key].tobytes() == data
                continue
            original = np.frombuffer(data, dtype=ml_dtypes.bfloat16).reshape(shape).astype(np.float64)
            error = np.square(tensors[key].astype(np.float64) - original).sum() / np.square(original).sum()
            # A wrong arrangement would have an error of about 2.
            assert 0 < error < 0.5, (key, error)
            rounded += 1
        assert rounded > 0
        if name == "gpt2":
            key = "transformer.h.0.attn.c_attn.weight"
            assert (tensors[key].T == pack[key]).all() and pack.numpy(key, source_layout=True).shape == tensors[key].shape


def test_the_command_of_the_package_is_complete(tiny, tmp_path):
    verified = ucpack_command("verify", tiny)
    assert verified.returncode == 0 and "PASS" in verified.stdout
    assert ucpack_command("verify", tmp_path).returncode != 0
    script = shutil.which("ucpack", path=os.path.dirname(sys.executable))
    assert script and subprocess.run([script, "--version"], capture_output=True).returncode == 0
    # It also runs where the package cannot be written and from another folder.
    planned = subprocess.run([script, "compress", TINY, "--dry-run"], capture_output=True, text=True, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr


def test_importing_the_package_imports_no_framework():
    code = "import sys, ucpack; print([m for m in ('torch', 'transformers', 'vllm', 'matplotlib') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stderr

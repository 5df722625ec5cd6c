"""Files and folders that wfcast does not read: the message says what they are and what to do."""

import io
import json
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import wfcast
from wfcast import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def archived(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return file.getvalue()


def array_file(save):
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    return file.getvalue()


FILES = {
    "m.gguf": (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file, which is not read: forecast the"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file (Keras)"),
    "m.keras": (archived(["metadata.json", "model.weights.h5"]), "is a Keras archive"),
    "flax_model.msgpack": (b"\x81\xa6params\x81\xa1w\xc7", "is a file of Flax"),
    "m.npy": (array_file(lambda f: np.save(f, np.ones(3))), "pass {name: numpy.load(path)}"),
    "m.npz": (array_file(lambda f: np.savez(f, a=np.ones(3))), "pass dict(numpy.load(path))"),
    "m.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "is an ONNX file"),
    "model.ckpt-500.index": (b"\0\0\7\1model\0", "is a file of TensorFlow"),
    "model.ckpt-500.data-00000-of-00001": (bytes(64), "is a file of TensorFlow"),
    "saved_model.pb": (b"\x08\x01\x12", "is a file of TensorFlow"),
    "m.nemo": (tar(), "is a tar archive, such as NeMo's: unpack it"),
    "lfs.safetensors": (LFS, "is a pointer of git-lfs: fetch the file by 'git lfs pull'"),
    "lfs.bin": (LFS, "is a pointer of git-lfs"),
    "m.pt.gz": (b"\x1f\x8b\x08" + bytes(30), "is compressed by gzip: unpack it"),
    "page.bin": (b"<!DOCTYPE html><html>", "is a web page, and no checkpoint"),
    "config.json": (b'{"model_type": "bert"}', "holds no weights: name the folder that it is in"),
    "__0_0.distcp": (archived(["archive/data.pkl"])[:2] + b"x", "no record|zip file"),
    "script.pt": (archived(["s/constants.pkl", "s/data.pkl"]), "is a TorchScript archive"),
    "odd.safetensors": (b"what is this?", "it begins with b'what is ', and is none of torch.save"),
    "m.txt": (b"nothing that is known", "it begins with b'nothing ', and is none of torch.save"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format(tmp_path, name):
    content, want = FILES[name]
    if "torch" in want or "zip" in want:
        pytest.importorskip("torch")  # which is asked before such a file is refused
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        wfcast.inspect(path)
    assert any(part in str(raised.value) for part in want.split("|")), str(raised.value)


def test_a_header_length_that_looks_like_another_format(tmp_path):
    """The first eight bytes of a safetensors file are a number, which may begin like any magic."""
    path = tmp_path / "a.safetensors"
    save_file({"w": np.ones(4, np.float32)}, path)
    content = path.read_bytes()
    for magic in (b"BZh", b"\x1f\x8b", b"PK"):
        length = int.from_bytes(magic + bytes(8 - len(magic)), "little")
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        wide = length.to_bytes(8, "little") + header + b" " * (length - len(header))
        path.write_bytes(wide + content[-16:])
        assert wfcast.inspect(path).checkpoint.tensors["w"].size == 4


def test_a_pickle_of_arrays_and_other_protocols(tmp_path):
    torch = pytest.importorskip("torch")
    with open(tmp_path / "detectron.pkl", "wb") as file:
        pickle.dump({"model": {"w": np.ones((4, 4), np.float32)}}, file)
    with pytest.raises(CheckpointError, match=r"is a pickle, or a file of torch before 1\.6"):
        wfcast.inspect(tmp_path / "detectron.pkl")
    torch.save({"w": torch.ones(4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"is a pickle, or a file of torch before 1\.6"):
        wfcast.inspect(tmp_path / "a.pt")
    for protocol in (3, 4, 5):
        torch.save({"w": torch.ones(4)}, tmp_path / "p.pt", pickle_protocol=protocol)
        try:
            with warnings.catch_warnings(action="ignore"):  # that the protocol is another one
                torch.load(tmp_path / "p.pt", weights_only=True)
        except pickle.UnpicklingError:
            with pytest.raises(CheckpointError, match=r"pickle protocol.*Save it with pickle_prot"):
                wfcast.inspect(tmp_path / "p.pt")
        else:
            assert wfcast.inspect(tmp_path / "p.pt").checkpoint.tensors["w"].size == 4


def folder_of(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            save_file({"w": np.ones(4, np.float32)}, path / name)
        else:
            (path / name).write_bytes(content)
    return path


INDEX = json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}).encode()
FOLDERS = {
    "diffusers": (
        {"model_index.json": INDEX, "unet/diffusion_pytorch_model.safetensors": None},
        "is a pipeline of diffusers: name one of its components, unet",
    ),
    "diffusers' LoRA": (
        {"pytorch_lora_weights.safetensors": None},
        "is a folder of LoRA weights of diffusers: name the file",
    ),
    "Llama": ({"consolidated.00.pth": b"", "params.json": b"{}"}, "of Llama's own format"),
    "DeepSpeed": (
        {"latest": b"global_step5", "global_step5/mp_rank_00_model_states.pt": b""},
        "join them by its own zero_to_fp32.py",
    ),
    "DeepSpeed's step": ({"mp_rank_00_model_states.pt": b""}, "is a checkpoint of DeepSpeed"),
    "Megatron": (
        {"latest_checkpointed_iteration.txt": b"5", "iter_0000005/mp_rank_00/x.pt": b""},
        "is a checkpoint of Megatron",
    ),
    "Megatron's step": ({"mp_rank_00/model_optim_rng.pt": b""}, "is a checkpoint of Megatron"),
    "TensorFlow": ({"saved_model.pb": b""}, "is a folder of TensorFlow"),
    "Orbax": ({"manifest.ocdbt": b""}, "is a checkpoint of Orbax"),
    "no index": (
        {"model-00001-of-00002.safetensors": None, "model-00002-of-00002.safetensors": None},
        "is a folder of shards such as model-00001-of-00002.safetensors without their index",
    ),
    "an adapter by name": (
        {"policy/adapter_model.safetensors": None, "policy/adapter_config.json": b"{}"},
        "name the folder in it that is meant: policy",
    ),
    "a file by another name": ({"best.safetensors": None}, "name the file that is meant: best.saf"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_kind(tmp_path, name):
    files, want = FOLDERS[name]
    folder = folder_of(tmp_path / "given", files)
    with pytest.raises(CheckpointError) as raised:
        wfcast.compare_checkpoints(folder, folder)
    assert want in str(raised.value)


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("distilbert/distilbert-base-uncased", "what huggingface_hub.snapshot_download returns"),
        ("https://example.org/model.safetensors", "only local paths are read: download it first"),
        ("s3://bucket/model.safetensors", "only local paths are read: download it first"),
        ("hf://org/model", "only local paths are read: download it first"),
        ("lost.safetensors", "there is no file 'lost.safetensors'$"),
    ],
)
def test_only_local_paths(tmp_path, monkeypatch, source, want):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=want):
        wfcast.inspect(source)

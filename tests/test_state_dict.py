"""Specs from checkpoints alone: right where names and shapes decide, aloud where not, refused where they cannot."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.canonical import canonicalise
from wsl.execute import execute
from wsl.spec import SpecError, WeightSpec, mlp_spec
from wsl.state_dict import Hints, from_folder, from_state_dict, read_state_dict
from wsl.symmetry import act, draw


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 9, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip


CNN_HINTS = {"activation": "relu", "layers": {"0": {"stride": 2, "padding": 1}}}


def symmetries_hold(spec: WeightSpec, module: nn.Module, inputs: Tensor) -> float:
    """Largest change of the module's own outputs under every symmetry that the spec claims."""
    module = module.double().eval()
    state = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    batch = WeightBatch.from_state_dicts(spec, [state])
    batch = batch.with_values(batch.values + torch.rand_like(batch.values) * 0.3)  # biases and buffers too
    every = ("permutation", "scaling", "sign", "phase")
    moved = act(draw(spec, 1, symmetries=every, dtype=torch.float64), batch)
    assert not torch.allclose(moved.values, batch.values)
    outputs = []
    for weights in (batch, moved):
        module.load_state_dict(weights.state_dict(0), strict=False)
        outputs.append(module(inputs.double()))
    return float((outputs[0] - outputs[1]).abs().max().detach())


def test_an_mlp_is_the_mlp_spec() -> None:
    spec, told = from_state_dict(mlp().state_dict(), {"activation": "relu"})
    expected = mlp_spec([3, 7, 5, 2])
    assert [t.scaling for t in spec.tensors] == [t.scaling for t in expected.tensors]
    assert [t.strides for t in spec.tensors] == [t.strides for t in expected.tensors]
    assert [(x.size, x.kind, x.symmetries) for x in spec.labels] == [
        (x.size, x.kind, x.symmetries) for x in expected.labels
    ]
    assert not spec.verified
    assert "layers follow each other in the order of the file: 0, 2, 4" in str(told)
    assert "(out, in), the only order that fits" in str(told)
    module, inputs = mlp(), torch.randn(6, 3)
    batch = WeightBatch.from_state_dicts(spec, [module.state_dict()])
    torch.testing.assert_close(execute(batch, inputs)[0], module(inputs).detach())


def test_unknown_activations_claim_permutations_only() -> None:
    spec, told = from_state_dict(mlp().state_dict())
    assert {x.symmetries for x in spec.labels if x.kind == "hidden"} == {("permutation",)}
    assert "the activation after 0, 2 is unknown: permutations only" in str(told)
    with pytest.raises(SpecError, match="cannot be executed"):
        execute(WeightBatch(spec, torch.zeros(1, spec.numel, 1)), torch.zeros(1, 3))


def test_a_cnn_with_norm_depthwise_and_flatten() -> None:
    module, inputs = cnn(), torch.randn(6, 1, 10, 10)
    spec, told = from_state_dict(module.state_dict(), CNN_HINTS)
    for note in ("'1' is a batch norm", "'3' is a depthwise", "'8' reads a flattened [3, 3] feature map, channel-major",
                 "'1.num_batches_tracked' counts batches", "stride 1 and padding 0 where hints name none"):  # fmt: skip
        assert note in str(told)
    assert [c.kind for c in spec.connections] == ["conv", "norm", "depthwise", "conv", "linear", "linear"]
    assert spec.tensor["8.weight"].shape == (5, 6, 9)
    assert all(x.symmetries == ("permutation", "scaling") for x in spec.labels if x.kind == "hidden")
    batch = WeightBatch.from_state_dicts(spec, [module.double().state_dict()])
    torch.testing.assert_close(execute(batch, inputs.double())[0], module.eval()(inputs.double()).detach())
    assert symmetries_hold(spec, module, inputs) < 1e-12


def test_a_checkpoint_that_is_not_what_was_assumed() -> None:
    """The control: with tanh the scaling that ``relu`` claims changes the outputs."""
    module = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))
    spec, _ = from_state_dict(module.state_dict(), {"activation": "relu"})
    assert symmetries_hold(spec, module, torch.randn(6, 3)) > 1e-2
    spec, _ = from_state_dict(module.state_dict(), {"activation": "tanh"})
    assert symmetries_hold(spec, module, torch.randn(6, 3)) < 1e-12


def test_global_pooling_and_signs_before_unknown_pools() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    spec, told = from_state_dict(module.state_dict(), {"activation": "tanh"})
    assert "global average pooling before '4'" in str(told)
    assert spec.label["0"].symmetries == ("permutation",)  # a max pool would break the sign
    assert symmetries_hold(spec, module, torch.randn(6, 1, 8, 8)) < 1e-12


def keras(module: nn.Module) -> dict[str, Tensor]:
    """The same network as Keras stores it: kernels [h, w, in, out] and [in, out], flattened (h, w, c)."""
    conv, linear, head = (layer for layer in module if hasattr(layer, "weight"))
    flat = linear.weight.unflatten(1, (conv.out_channels, 3, 3)).permute(2, 3, 1, 0).flatten(0, 2)
    return {
        "conv2d/kernel:0": conv.weight.permute(2, 3, 1, 0).contiguous(), "conv2d/bias:0": conv.bias,
        "dense/kernel:0": flat.contiguous(), "dense/bias:0": linear.bias,
        "dense_1/kernel:0": head.weight.T.contiguous(), "dense_1/bias:0": head.bias,
    }  # fmt: skip


def test_in_out_layouts_are_read_as_they_are_stored() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    state = {name: tensor.detach() for name, tensor in keras(module).items()}
    spec, told = from_state_dict(state, {"activation": "relu"})
    assert "weights are stored (in, out), the only order that fits" in str(told)
    assert "channel-minor (h, w, c)" in str(told)
    batch = WeightBatch.from_state_dicts(spec, [state])
    assert torch.equal(batch["conv2d/kernel:0"][0, ..., 0], module[0].weight.flatten(2))
    inputs = torch.randn(4, 2, 5, 4)
    torch.testing.assert_close(execute(batch, inputs)[0], module(inputs).detach(), rtol=1e-5, atol=1e-6)


def test_layers_are_found_in_the_order_of_their_numbers() -> None:
    state = mlp().state_dict()
    shuffled = {name: state[name] for name in ("4.weight", "4.bias", "0.bias", "0.weight", "2.weight", "2.bias")}
    spec, told = from_state_dict(shuffled)
    assert "in the order of their numbers: 0, 2, 4" in str(told)
    assert [s.name for s in spec.stored] == list(shuffled)
    named = {
        name.replace("0.", "stem.").replace("2.", "body.").replace("4.", "head."): t for name, t in shuffled.items()
    }
    with pytest.raises(SpecError, match=r"form no chain: 'stem' reads 3 channels.*hints: order"):
        from_state_dict(named)
    spec, told = from_state_dict(named, {"order": ["stem", "body", "head"]})
    assert [g.name for g in spec.groups] == ["input", "stem", "body", "output"]
    assert "the order of the hints" in str(told)


def test_square_layers_say_that_both_layouts_fit() -> None:
    _, told = from_state_dict({"weight_0": torch.zeros(4, 4), "bias_0": torch.zeros(4), "weight_1": torch.zeros(4, 4)})
    assert "(out, in); (in, out) would fit the sizes too" in str(told)
    spec, told = from_state_dict({"weight_0": torch.zeros(4, 4), "weight_1": torch.zeros(4, 4)}, {"layout": "in_out"})
    assert spec.tensor["weight_0"].strides == (1, 4)


REFUSED = {
    "recurrent": (nn.GRU(3, 4).state_dict(), None, "'weight_ih_l0' .* recurrent layer.*trace"),
    "attention": (nn.MultiheadAttention(4, 2).state_dict(), None, "'in_proj_weight' .* attention"),
    "vector": (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).state_dict(), None,
               r"'1' holds vectors only.*layers: \{1: \{norm: layer\}\}"),
    "grouped": (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3, groups=2)).state_dict(), None,
                "'1' reads 2 channels of 4, a grouped convolution"),
    "backwards": (nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3)).state_dict(), None, "convolution after a linear"),
    "broken chain": ({"a.weight": torch.zeros(5, 3), "b.weight": torch.zeros(2, 7)}, None,
                     "'b' reads 7 channels, the layer before has 5"),
    "loose": ({"a.weight": torch.zeros(5, 3), "a.table": torch.zeros(5)}, None, r"'a.table' \[5\] is no known part"),
    "shortcut": ({"layer1.downsample.weight": torch.zeros(2, 2)}, None, "a skip connection, which ties neurons"),
    "bias": ({"a.weight": torch.zeros(5, 3), "a.bias": torch.zeros(4)}, {"layout": "out_in"},
             r"the bias of 'a' has shape \[4\], its weight 5 outputs"),
    "integers": ({"a.weight": torch.zeros(5, 3, dtype=torch.int64)}, None, "'a.weight' holds torch.int64"),
    "nan": ({"a.weight": torch.full((5, 3), torch.nan)}, None, "'a.weight' holds values that are not finite"),
    "oblong": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(24, 2)).state_dict(), None,
               r"'1' reads 24 values of 4 channels, 6 positions, which is no square.*spatial: \[height, width\]"),
    "spatial": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(24, 2)).state_dict(),
                {"layers": {"1": {"spatial": [2, 2]}}},
                r"layers.1.spatial \[2, 2\] has not 6 positions"),
    "unknown layer": (mlp().state_dict(), {"layers": {"fc": {"stride": 1}}},
                      r"layers \['fc'\] are not in the checkpoint"),
    "unknown key": (mlp().state_dict(), {"activations": "relu"}, r"hints: unknown keys \['activations'\]; known"),
    "unknown activation": (mlp().state_dict(), {"activation": "swish"}, "unknown activation 'swish'; known"),
    "unknown parameter": (mlp().state_dict(), {"activation": "relu", "parameters": {"omega": 3}}, "parameters of relu"),
    "order": (mlp().state_dict(), {"order": ["0", "2"]}, r"order names \['0', '2'\], the layers are"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_known_is_refused(name: str) -> None:
    state, hints, message = REFUSED[name]
    with pytest.raises(SpecError, match=message):
        from_state_dict(state, hints)


def test_hints_help_where_shapes_do_not(tmp_path: Path) -> None:
    file = tmp_path / "hints.yaml"
    file.write_text(
        "activation: sine\nparameters: {omega: 30.0}\noutput_offset: 0.5\nlayers:\n  '1': {norm: layer, eps: 1.0e-3}\n"
    )
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    spec, _ = from_state_dict(module.state_dict(), file)
    assert spec.groups[-1].parameters == {"offset": 0.5}
    assert spec.connections[1].attributes == {"norm": "layer", "eps": 1e-3}
    assert [x.symmetries for x in spec.labels if x.kind == "hidden"] == [
        ("permutation",), ("permutation", "sign", "phase"),
    ]  # fmt: skip
    canonical, _ = canonicalise(WeightBatch.from_state_dicts(spec, [module.state_dict()]))
    assert canonical.values.isfinite().all()
    file.write_text("activation: [")
    with pytest.raises(SpecError, match=r"hints.yaml cannot be read"):
        from_state_dict(module.state_dict(), file)
    file.write_text("- relu")
    with pytest.raises(SpecError, match=r"hints.yaml: expected a mapping"):
        Hints.read(file)


def test_axes_by_hand() -> None:
    """A recurrent layer with its hidden neurons named: gates stay together as a fixed axis would, or are frozen."""
    state = {"W": torch.zeros(5, 3), "U": torch.zeros(5, 5), "b": torch.zeros(5), "head": torch.zeros(2, 5)}
    axes = {"W": ["h", "_in"], "U": ["h", "h"], "b": ["h"], "head": ["output", "h"]}
    spec, told = from_state_dict(state, {"axes": axes, "labels": {"h": {"activation": "tanh"}}})
    assert spec.label["h"].symmetries == ("permutation", "sign") and spec.label["_in"].kind == "fixed"
    assert spec.tensor["U"].scaling == (1, -1) and spec.tensor["head"].scaling == (0, -1)
    assert "named by hand" in str(told)
    for broken, message in (
        ({**axes, "b": ["h", "h"]}, r"axes of 'b' \[5\] should name each axis, got \['h', 'h'\]"),
        ({**axes, "x": ["h"]}, r"axes names \['x'\], which the checkpoint does not hold"),
        ({**axes, "W": ["h", "h"]}, "label 'h' has size 5 in 'W', but 3 in 'W'"),
    ):
        with pytest.raises(SpecError, match=message):
            from_state_dict(state, {"axes": broken})
    with pytest.raises(SpecError, match=r"labels \['z'\] are on no axis"):
        from_state_dict(state, {"axes": axes, "labels": {"z": {}}})


def test_files_are_read_safely(tmp_path: Path) -> None:
    state = mlp().state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "c.ckpt")
    for name in ("a.safetensors", "b.pt", "c.ckpt"):
        found = read_state_dict(tmp_path / name)
        assert set(found) == set(state) and all(torch.equal(found[k], state[k]) for k in state)
    torch.save(mlp(), tmp_path / "code.pt")
    with pytest.raises(SpecError, match=r"code.pt holds more than tensors.*save the state dict alone"):
        read_state_dict(tmp_path / "code.pt")
    torch.save({"lr": 0.1, "w": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(SpecError, match=r"other.pt is no state dict: \['lr'\] are not tensors"):
        read_state_dict(tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(SpecError, match="no state dict but a list"):
        read_state_dict(tmp_path / "list.pt")
    for name in ("torn.pt", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02nonsense")
        with pytest.raises(SpecError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(SpecError, match=r"note.txt: not a checkpoint"):
        read_state_dict(tmp_path / "note.txt")
    with pytest.raises(SpecError, match=r"missing.pt cannot be read"):
        read_state_dict(tmp_path / "missing.pt")


def test_a_folder_is_one_batch(tmp_path: Path) -> None:
    modules = [mlp(), cnn(), mlp().bfloat16()]
    for number, module in enumerate(modules):
        safetensors.torch.save_file(module.state_dict(), tmp_path / f"{number}.safetensors")
    batch, paths, told = from_folder(tmp_path, {"activation": "relu"})
    assert [p.name for p in paths] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert batch.spec_ids.tolist() == [0, 1, 0] and len(told) == 2
    assert batch.values.dtype == torch.float32
    (positions, mlps), _ = batch.split()
    assert positions.tolist() == [0, 2]
    assert torch.equal(mlps.state_dict(1)["2.weight"], modules[2].float().state_dict()["2.weight"])
    broken = mlp().state_dict() | {"2.bias": torch.full((5,), torch.inf)}
    safetensors.torch.save_file(broken, tmp_path / "3.safetensors")
    with pytest.raises(SpecError, match=r"3.safetensors: '2.bias' holds values that are not finite"):
        from_folder(tmp_path)
    left_out: dict[Path, str] = {}
    batch, paths, told = from_folder(tmp_path, {"activation": "relu"}, left_out)
    assert len(batch) == len(paths) == 3 and list(left_out) == [tmp_path / "3.safetensors"]
    assert "'2.bias' holds values that are not finite" in left_out[tmp_path / "3.safetensors"]
    with pytest.raises(SpecError, match="holds no checkpoint"):
        from_folder(tmp_path / "nothing")


def test_one_architecture_is_one_spec_whatever_order_files_have(tmp_path: Path) -> None:
    """Torch files have tensors in the order of the module, safetensors by type and name: ``10`` before ``2``."""
    modules = [nn.Sequential(*(nn.Tanh() if i % 2 else nn.Linear(4, 4) for i in range(13))) for _ in range(2)]
    for first, second in (("pt", "safetensors"), ("safetensors", "pt")):
        folder = tmp_path / first
        folder.mkdir()
        for number, (module, kind) in enumerate(zip(modules, (first, second), strict=True)):
            path, state = folder / f"{number}.{kind}", module.state_dict()
            torch.save(state, path) if kind == "pt" else safetensors.torch.save_file(state, path)
        batch, _, told = from_folder(folder, {"activation": "tanh"})
        assert len(batch.specs) == len(told) == 1
        inputs = torch.randn(5, 4)
        ((_, group),) = batch.split()
        for outputs, module in zip(execute(group, inputs), modules, strict=True):
            torch.testing.assert_close(outputs, module(inputs).detach())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_damage_is_answered_without_advice_to_load_unsafely(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(mlp().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    good, rng = path.read_bytes(), random.Random(0)
    contents = [b"", b"<html>", b"\x80\x02nonsense", good[:-30], good[:200]]
    for _ in range(150):
        changed = bytearray(good)
        for _ in range(2):
            changed[rng.randrange(min(len(good), 900))] = rng.randrange(256)
        contents.append(bytes(changed))
    refused = []
    for content in contents:
        path.write_bytes(content)
        try:
            read_state_dict(path)
        except SpecError as error:
            refused.append(str(error))
    assert len(refused) > 50 and all(str(path) in text for text in refused)
    assert not [text for text in refused if "weights_only" in text or "Re-running" in text]
    assert all("it is damaged or no torch file" in text for text in refused if "more than tensors" not in text)
    assert sum("it is damaged or no torch file" in text for text in refused) > 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torch_script_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(
        SpecError, match=r"a\.pt cannot be read: it is a TorchScript archive.*save the state dict alone"
    ):
        read_state_dict(tmp_path / "a.pt")
